"""The commands that install this package, for messages and model cards. It is not on a package index yet."""

__all__ = ["PLACE", "pip_install", "to_install", "to_upgrade"]

PLACE = "in a clone of nfnet_timm"


def pip_install(extras: str = "") -> str:
    """Return the command that installs this package with ``extras``, such as "demo,orbax". Run it in a clone."""
    return f"pip install '.[{extras}]'" if extras else "pip install ."


def to_install(extras: str = "") -> str:
    """Return the command of ``pip_install`` with the place to run it, for a message."""
    return f"`{pip_install(extras)}` {PLACE}"


def to_upgrade(distribution: str) -> str:
    """Return the command that upgrades this package or another one, for a message."""
    return to_install() if distribution == "nfnet-timm" else f"`pip install --upgrade {distribution}`"
