"""What setup.cfg cannot say: the wheel holds the folder `configs` as `auxseg/configs`."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["auxseg*"]), "auxseg.configs"],
    package_dir={"auxseg.configs": "configs"},
)
