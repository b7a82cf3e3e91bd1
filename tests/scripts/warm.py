"""A process that has imported the entry script and forks children to run it: a start takes no seconds, a kill is real.

    warm = Warm(); child = warm.start("--flag value ...", log); child.kill(); child.wait()
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from threading import RLock

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Child:
    """A run of the entry script in a process of its own."""

    pid: int
    warm: Warm

    @property
    def has_ended(self) -> bool:
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Its exit status, negative for a signal."""
        return self.warm.ask({"wait": self.pid})


class Warm:
    """Its strings are hashed otherwise than those of the test, as of any two processes."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "7"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, what: dict) -> int:
        print(json.dumps(what), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def start(self, line: str, log: Path) -> Child:
        """Starts `train_text_diffusion.py LINE`, whose words go to the end of `log`."""
        return Child(self.ask({"line": line, "log": str(log)}), self)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def serve() -> None:
    import torch
    from tqdm import tqdm

    import train_text_diffusion
    from latent_models.codec import find_model
    from latent_models.seq2seq_codec import Seq2SeqCodec
    from offline_metrics.language_model import LanguageModel
    from scripts.job.errors import run

    torch.set_num_threads(1)
    # tqdm's own lock is one for all children, and one that is killed while it draws its bar would keep it for ever.
    tqdm.set_lock(RLock())
    Seq2SeqCodec.load(find_model("bart-demo"))  # what is imported late is imported now
    LanguageModel(find_model("gpt2-demo"), torch.device("cpu"))
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            answer = os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1])
        elif (answer := os.fork()) == 0:
            log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1), os.dup2(log, 2)
            sys.argv = ["train_text_diffusion.py", *shlex.split(asked["line"])]
            status = 1
            try:
                run(train_text_diffusion.main)
                status = 0
            except SystemExit as leaving:
                status = leaving.code
            finally:
                sys.stderr.flush(), sys.stdout.flush()
                os._exit(status)
        print(answer, file=answers, flush=True)


if __name__ == "__main__":
    serve()
