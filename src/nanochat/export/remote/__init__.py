"""Python files that are copied into an exported folder, for eras that no stock class of
transformers has. They import nothing of ours."""
