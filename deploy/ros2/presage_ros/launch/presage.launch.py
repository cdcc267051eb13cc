"""The bridge with its parameters: ros2 launch presage_ros presage.launch.py image:=/camera/image_raw/compressed"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node


def generate_launch_description() -> LaunchDescription:
    defaults = Path(get_package_share_directory("presage_ros")) / "config" / "presage.yaml"
    topics = {"image": "image/compressed", "plan": "plan", "joint_states": "joint_states"}
    names = [DeclareLaunchArgument(name, default_value=topic) for name, topic in topics.items()]
    params = DeclareLaunchArgument("params", default_value=str(defaults), description="a file of parameters")
    node = Node(
        package="presage_ros",
        executable="bridge",
        name="presage",
        parameters=[LaunchConfiguration("params")],
        remappings=[
            ("image/compressed", LaunchConfiguration("image")),
            ("plan", LaunchConfiguration("plan")),
            ("joint_states", LaunchConfiguration("joint_states")),
        ],
    )
    return LaunchDescription([*names, params, node])
