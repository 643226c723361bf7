# %% [markdown]
# # attention
#
# about

# %%
print(1)
