"""What is known of the machine, and what becomes of a run that another kind of machine began."""

import json
from pathlib import Path

import pytest
import torch

import killing
from killing import STEPS, Stop, train
from resnet_repro import evidence, experiment, machine
from resnet_repro.checkpoint import KNOWN_LATER, CheckpointStore, differences, read_tensors
from resnet_repro.engine import ResolvedEngine
from resnet_repro.errors import OtherMachineError, ReproError
from resnet_repro.evidence import MOVED, Processor, Provenance
from resnet_repro.reporting.tables import run_table
from resnet_repro.tracking.record import record_at_end

ROME = Processor(vendor="AuthenticAMD", family="23", model="49", stepping="0", name="AMD EPYC")
TURIN = ROME.model_copy(update={"family": "26", "model": "2", "stepping": "1"})
X86 = (
    "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\nstepping\t: 1\n"
)
ARM = "processor\t: 0\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: 0xd40\nCPU revision\t: 1\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (X86 + "\nprocessor\t: 1\nvendor_id\t: Other\n", "AuthenticAMD family 26 model 2 stepping 1"),
        (ARM, "0x41 family 8 model 0xd40 stepping 1"),
    ],
)
def test_a_processor_is_named_exactly(
    text: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(text)
    assert str(machine.processor()) == expected
    (tmp_path / "cpuinfo").unlink()
    assert str(machine.processor()) == machine.processor().name != ""


def test_a_session_says_what_decides_the_bits() -> None:
    session = machine.make_session(ResolvedEngine("cpu", "eager", "fp32", 1, True), None)
    assert session.cpu_capability == torch.backends.cpu.get_cpu_capability()
    assert ("avx512_bf16" in session.cpu_flags) == torch.cpu._is_avx512_bf16_supported()
    assert (session.compiler_isa, session.driver, session.threads) == (None, None, 1)
    assert session.cores >= 1


@pytest.fixture
def handed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that a Rome stopped after step 17 of 60, handed to a Turin."""
    folder = killing.make_folder(tmp_path / "run", "resnet")
    monkeypatch.setattr(machine, "processor", lambda: ROME)
    with pytest.raises(experiment.InterruptedRunError):
        train(folder, interruption=Stop(17))
    monkeypatch.setattr(machine, "processor", lambda: TURIN)
    return folder


def test_a_run_of_another_machine_stops_and_says_so(handed_over: Path) -> None:
    with pytest.raises(OtherMachineError) as refused:
        train(handed_over)
    (path,) = handed_over.glob("checkpoints/*/*/step-000000017.safetensors")
    rome, turin = "AuthenticAMD family 23 model 49 stepping 0", "AuthenticAMD family 26 model 2 stepping 1"
    name = read_tensors(path)[1]["identity"]
    device = json.loads(name)["device_name"]
    assert str(refused.value) == (
        f"resnet-1 reached step 17 on {device} ({rome}), and this is {device} ({turin}): "
        f"processor '{rome}' is now '{turin}'. The same bits come of that kind of machine only. "
        f"Either RESNET_REPRO_CHECKPOINT=move goes on from {path}, and the run is marked "
        '"moved: not bit-reproducible"; or RESNET_REPRO_CHECKPOINT=restart puts that aside, and trains from step 0'
    )
    with pytest.raises(ReproError, match="RESNET_REPRO_CHECKPOINT is 'mvoe': it can be move or restart"):
        train(handed_over, on_other_machine="mvoe")
    assert not (handed_over / "run").exists()
    assert path.exists()


def test_a_run_that_moves_is_marked(handed_over: Path) -> None:
    with pytest.raises(experiment.InterruptedRunError):
        train(handed_over, on_other_machine="move", interruption=Stop(10))
    moved = train(handed_over)  # further than the other by now: there is nothing to ask
    assert [(str(s.processor), s.moved) for s in moved.session_log] == [
        (str(ROME), False),
        (str(TURIN), True),
        (str(TURIN), False),
    ]
    assert (moved.sessions, moved.moved) == (3, True)
    assert moved.machine == f"{moved.device_name} ({MOVED})"
    experiment.evaluate(handed_over / "run", killing.make_arrays(), handed_over / "out")
    shown = evidence.RunEvidence.read(handed_over / "out")
    assert MOVED in run_table([shown], []).iloc[0].device
    assert record_at_end(shown.plan, moved, [], handed_over).tags["moved"] == "true"


def test_a_run_that_starts_over_keeps_the_other_aside(handed_over: Path) -> None:
    restarted = train(handed_over, on_other_machine="restart")
    assert (restarted.sessions, restarted.moved) == (1, False)
    assert len(list(handed_over.glob("checkpoints/resnet-1/aside/*/step-*"))) == 2
    assert train(handed_over).weights_sha256 == restarted.weights_sha256


def test_another_number_of_threads_is_named_with_its_remedy(handed_over: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "processor", lambda: ROME)
    plan = killing.make_plan("resnet")
    two = plan.engine.model_copy(update={"threads": 0})
    (handed_over / killing.PLAN).write_text(plan.model_copy(update={"engine": two}).to_json())
    for threads, said in ((1, None), (2, r"threads 1 is now 2\. The same bits .*, or here of OMP_NUM_THREADS=1\.")):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        if said is None:
            with pytest.raises(experiment.InterruptedRunError):
                train(handed_over, interruption=Stop(5))
        else:
            with pytest.raises(OtherMachineError, match=said):
                train(handed_over)


def test_checkpoints_of_before_the_processor_was_known_go_on(handed_over: Path) -> None:
    """Their identity names this kind of machine as far as it was known then."""
    unbroken = train(killing.make_folder(handed_over / "unbroken", "resnet"))
    (path,) = handed_over.glob("checkpoints/*/*/step-000000017.safetensors")
    tensors, metadata = read_tensors(path)
    identity, content = json.loads(metadata["identity"]), json.loads(metadata["content"])
    del content["origin"]["session_log"], content["done"], content["peak_memory_bytes"]
    old = {key: value for key, value in identity.items() if key not in KNOWN_LATER}
    store = CheckpointStore(path.parents[1], old)
    store.save(experiment.Checkpoint(tensors, content), 17)
    for other in path.parent.iterdir():
        other.unlink()
    resumed = train(handed_over)
    assert (resumed.sessions, resumed.moved, len(resumed.session_log)) == (2, False, 1)
    assert resumed.weights_sha256 == unbroken.weights_sha256


def test_a_finished_run_is_written_again_byte_by_byte(tmp_path: Path) -> None:
    folder = killing.make_folder(tmp_path / "run", "resnet")
    train(folder)
    before = killing.contents(folder / "run")
    killing.shutil.rmtree(folder / "run")
    train(folder, observer=killing.Silent(kill_at=STEPS))  # which no step comes to
    assert killing.contents(folder / "run") == before


def test_provenance_of_before_there_were_sessions_reads() -> None:
    for path in (killing.REPOSITORY / "reports").glob("**/runs/*/provenance.json"):
        provenance = Provenance.read(path)
        if not provenance.session_log:
            assert provenance.machine == provenance.device_name


def test_only_the_flags_that_differ_are_told() -> None:
    was, now = {"cpu_flags": "amx_tile avx avx2"}, {"cpu_flags": "avx avx2 avx512_bf16"}
    assert differences(was, now) == "cpu_flags had amx_tile and have avx512_bf16 instead"
