"""Puts the shared library into the wheel: that of RUNTIME_LIBRARY, else the newest that cargo has built, else a new one."""

import os
import shutil
import subprocess
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent.parent.parent
NAMES = ["libruntime.so", "libruntime.dylib", "runtime.dll"]


def library() -> Path:
    named = os.environ.get("RUNTIME_LIBRARY")
    if named:
        return Path(named)

    def built():
        folders = [ROOT / "target" / profile for profile in ("dist", "release", "release/deps")]
        return [folder / name for folder in folders for name in NAMES if (folder / name).is_file()]

    if not built():
        subprocess.run(["cargo", "build", "--release", "--lib"], cwd=ROOT, check=True)
    return max(built(), key=lambda path: path.stat().st_mtime)


class WithLibrary(build_py):
    def run(self):
        super().run()
        source = library()
        shutil.copy2(source, Path(self.build_lib) / "runtime_engine" / source.name)


class Binary(Distribution):
    """The wheel is for one system: it has a shared library, though no extension module."""

    def has_ext_modules(self):
        return True


setup(cmdclass={"build_py": WithLibrary}, distclass=Binary)
