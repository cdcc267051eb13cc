from setuptools import setup

NAME = "presage_ros"

setup(
    name=NAME,
    version="0.1.0",
    packages=[NAME],
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/" + NAME]),
        ("share/" + NAME, ["package.xml"]),
        ("share/" + NAME + "/launch", ["launch/presage.launch.py"]),
        ("share/" + NAME + "/config", ["config/presage.yaml"]),
    ],
    install_requires=["setuptools", "presage"],
    zip_safe=True,
    maintainer="Presage",
    maintainer_email="presage@example.org",
    description="Bridge to Presage, a video world-model service: compressed images in, plans out.",
    license="Apache-2.0",
    entry_points={"console_scripts": ["bridge = presage_ros.node:main"]},
)
