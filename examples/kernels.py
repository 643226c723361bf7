# %% [markdown]
# # kernels
#
# about

# %%
print(1)
