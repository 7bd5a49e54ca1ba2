"""The private functions of torch and timm that the package uses. tests/compat has a test for each one."""
