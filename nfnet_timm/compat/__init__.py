"""The private functions of torch and timm that the package uses."""
