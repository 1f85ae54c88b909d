"""Python files that are copied into an exported folder, for eras without a stock class in
transformers. They import no code of ours."""
