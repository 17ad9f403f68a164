"""A Ray cluster of this machine's own: its nodes are processes, and one of them can be lost."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil

from tracking_records import closed_port


class Cluster:
    """Ray's own processes: a head that runs nothing, and nodes of one core each."""

    def __init__(self, folder: Path) -> None:
        self.address, self.folder = f"127.0.0.1:{closed_port()}", folder
        self.temp = Path("/tmp") / f"ray-{os.getpid()}"  # its sockets' paths have to be short
        port = self.address.partition(":")[2]
        self.head = self._start(
            "--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false", f"--temp-dir={self.temp}"
        )
        self.nodes = [self.add_node() for _ in range(2)]

    def add_node(self) -> "subprocess.Popen[bytes]":
        return self._start(f"--address={self.address}", "--num-cpus=1")

    def _start(self, *arguments: str) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", *arguments]
        environment = {**os.environ, "TMPDIR": str(self.folder)}
        with (log := self.folder / f"{len(list(self.folder.glob('*.log')))}.log").open("w") as file:
            process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None, log.read_text()
        return process

    def node_of(self, process: psutil.Process) -> "subprocess.Popen[bytes]":
        above = {one.pid for one in process.parents()}
        return next(node for node in self.nodes if node.pid in above)

    @staticmethod
    def lose(node: "subprocess.Popen[bytes]") -> None:
        """As a machine whose power fails: all that runs on it is gone at once."""
        everything = [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]
        for process in everything:
            process.suspend()
        for process in everything:
            process.kill()
        node.wait()

    def close(self) -> None:
        for node in (*self.nodes, self.head):
            if node.poll() is None:
                self.lose(node)
        shutil.rmtree(self.temp, ignore_errors=True)
