# %% [markdown]
# # export
#
# about

# %%
print(1)
