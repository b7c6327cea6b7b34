"""Lists the packages; pyproject.toml has everything else, but cannot combine discovery with an explicit entry."""

from setuptools import find_packages, setup

# The recipes lie at the top of the repository, and in the wheel beside the code that reads them.
setup(
    packages=[*find_packages(include=["anchorjax", "anchorjax.*"]), "anchorjax.configs", "anchorjax.configs.methods"],
    package_dir={"anchorjax.configs": "configs", "anchorjax.configs.methods": "configs/methods"},
)
