"Packaging: every setting is in settings.ini; edit there, not here."

import shlex
from configparser import ConfigParser

from setuptools import find_packages, setup

config = ConfigParser(delimiters=["="])
config.read("settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]
lib = cfg["lib_name"]
statuses = "1 - Planning,2 - Pre-Alpha,3 - Alpha,4 - Beta,5 - Production/Stable,6 - Mature,7 - Inactive".split(",")

setup(
    name=lib,
    **{o: cfg[o] for o in "version description keywords author author_email".split()},
    license={"apache2": "Apache-2.0"}[cfg["license"]],
    classifiers=[
        f"Development Status :: {statuses[int(cfg['status']) - 1]}",
        f"Intended Audience :: {cfg['audience'].title()}",
        f"Natural Language :: {cfg['language'].title()}",
        "Programming Language :: Python :: 3",
    ],
    url=cfg["git_url"],
    # data_samples/ stands beside the library in a checkout and inside it in a wheel: see `vdmini.core.samples`
    packages=find_packages(include=[lib, f"{lib}.*"]) + [f"{lib}.data_samples"],
    package_dir={f"{lib}.data_samples": "data_samples"},
    package_data={lib: ["static/*", "configs/*"], f"{lib}.data_samples": ["**/*"]},
    include_package_data=False,
    python_requires=f">={cfg['min_python']}",
    install_requires=shlex.split(cfg["requirements"]),
    extras_require={"dev": shlex.split(cfg["dev_requirements"]), "shards": shlex.split(cfg["shard_requirements"])},
    long_description=open("README.md", encoding="utf-8").read(),
    long_description_content_type="text/markdown",
    zip_safe=False,
    entry_points={"console_scripts": cfg["console_scripts"].split(), "nbdev": [f"{lib}={lib}._modidx:d"]},
)
