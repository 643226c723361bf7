# %% [markdown]
# # llama
#
# about

# %%
print(1)
