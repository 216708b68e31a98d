"""The demo checks each answer that it prints."""

import re
import subprocess
import time

import pytest

from tests.shell import ROOT, bash

DEMO = (ROOT / "hack/demo.sh").read_text()


def demo(script: str, answer: str) -> subprocess.CompletedProcess[str]:
    """Run a part of the demo whose model always gives this answer."""
    functions = "\n".join(
        re.search(rf"^{name}\(\) {{.*?^}}$", DEMO, re.DOTALL | re.MULTILINE)[0]  # type: ignore[index]
        for name in ("ask_until", "ask_capital")
    )
    die = re.search(r"^die\(\) .*$", DEMO, re.MULTILINE)[0]  # type: ignore[index]
    return bash(
        f'{die}\nask() {{ printf %s "$ANSWER"; }}\nask_seconds=1\n{functions}\n{script}', ANSWER=answer
    )


@pytest.mark.parametrize("answer", ["no answer: timed out", "HTTP 404: ", "Lyon, I think."])
def test_the_demo_fails_if_the_model_gives_no_correct_answer(answer: str) -> None:
    done = demo("ask_capital; echo continued", answer)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "continued" not in done.stdout


def test_the_demo_continues_after_a_correct_answer() -> None:
    begun = time.monotonic()
    assert demo("ask_capital; echo continued", "It is Paris.").stdout.endswith("continued\n")
    assert time.monotonic() - begun < 20


def test_the_demo_fails_if_the_frontend_still_routes_to_the_frozen_engine() -> None:
    done = demo("ask_until refused 'Are you there?'; echo continued", "Yes.")
    assert (done.returncode, done.stderr) == (
        1,
        "error: the question was not refused; the last response was: Yes.\n",
    )


def test_the_demo_checks_the_answers_before_and_after_the_freeze() -> None:
    stages = DEMO.split("\nstage ")
    asked = [stage.split('"')[1].split(" ", 1)[0] for stage in stages[1:] if "\nask_capital\n" in stage]
    assert asked == ["send", "resume"]


@pytest.mark.parametrize(("cluster", "suffix"), [("local", ""), ("kind", " CLUSTER=kind")])
def test_the_last_lines_of_the_demo_name_the_cluster(cluster: str, suffix: str) -> None:
    end = DEMO[DEMO.index('stage "done"') :]
    text = bash(f"stage() {{ :; }}; namespace=demo endpoint=smollm\n{end}", CLUSTER=cluster).stdout
    assert f"$(make -s kubeconfig{suffix}) " in text
    assert f"\nmake clean{suffix} removes the cluster.\n" in text
