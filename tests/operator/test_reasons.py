"""That the tests here, and the page for users, name every reason of a condition."""

from __future__ import annotations

from pathlib import Path

from thranite_operator import causes, conditions


def test_no_reason_is_without_a_test_and_a_word_in_the_docs() -> None:
    own = {value for name, value in vars(conditions).items() if name.isupper() and isinstance(value, str)}
    of_pods = {*causes.EXIT_REASONS.values(), *causes.SETUP_REASONS, "ErrImagePull", "OOMKilled", "Killed"}
    of_pods |= {"ProbeFailed", "ReadinessProbeFailed", "ContainerFailed", "PodFailed", "Unschedulable"}
    of_models = {"NotRequired", "Cached", "Loading", "LoaderFailed"}
    paths = [path for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__)]
    tests = "".join(path.read_text() for path in paths)
    page = (Path(__file__).parents[2] / "docs" / "operator.md").read_text()
    for reason in own | of_pods | of_models:
        assert f'"{reason}"' in tests, reason
        assert f"`{reason}`" in page, reason
