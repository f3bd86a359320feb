"""The record of translations: bounded, whole lines only, read back as it was written."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ipmasq_agent.agent.record import RecordFile, lines, missed_line, recorded
from ipmasq_agent.errors import SourceError
from ipmasq_agent.policy.addresses import parse_address
from ipmasq_agent.policy.flows import End, Flow

MOMENT = 1795788191.125


def flow(source: str, port: int, to: str, left_as: str, protocol: int = 17) -> Flow:
    family, number = parse_address(source)
    far = End(parse_address(to)[1], 53 if protocol == 17 else 0)
    own = End(parse_address(left_as)[1], port + 1)
    return Flow(family, protocol, End(number, port), far, own, far)


FOUR = flow("172.20.0.5", 4000, "8.8.8.8", "192.0.2.1")
SIX = flow("fd00::5", 4000, "2001:db8::8", "2001:db8::1")
ECHO_SIX = flow("fd00::5", 77, "2001:db8::8", "2001:db8::1", protocol=58)
ECHO = flow("172.20.0.5", 77, "8.8.8.8", "192.0.2.1", protocol=1)
KEPT = FOUR._replace(left_as=FOUR.source)


def test_what_is_recorded_is_read_back_and_kept_ones_are_not_in_it(tmp_path: Path) -> None:
    path = tmp_path / "record"
    text = lines([(MOMENT, each) for each in (FOUR, SIX, ECHO, ECHO_SIX, KEPT)])
    assert text.splitlines()[0] == (
        "2026-11-27T14:03:11.125Z udp 172.20.0.5:4000 8.8.8.8:53 192.0.2.1:4001"
    )
    record = RecordFile(str(path), 1 << 20, 2)
    record.write(text)
    record.write(missed_line(MOMENT + 1, 12))
    record.close()
    read = list(recorded(str(path)))
    assert [what for _, what in read] == [FOUR, SIX, ECHO, ECHO_SIX, 12]
    assert [round(moment, 3) for moment, _ in read] == [MOMENT] * 4 + [MOMENT + 1]
    assert [what for _, what in recorded(str(path), "[2001:db8::1]:4001")] == [SIX, 12]
    assert path.stat().st_mode & 0o777 == 0o600


def test_files_are_bounded_and_so_is_their_number(tmp_path: Path) -> None:
    path, line = tmp_path / "record", lines([(MOMENT, FOUR)])
    for _ in range(3):  # agents, one after the other
        record = RecordFile(str(path), 10 * len(line), 3)
        for _ in range(15):
            record.write(line)
        record.close()
    assert {each.name for each in tmp_path.iterdir()} == {"record", "record.1", "record.2"}
    assert all(each.stat().st_size <= 10 * len(line) for each in tmp_path.iterdir())
    assert len(list(recorded(str(path)))) == 25  # 45 lines, of which the last files are kept


def test_the_oldest_come_first(tmp_path: Path) -> None:
    path = tmp_path / "record"
    record = RecordFile(str(path), 1, 4)
    for number in range(3):
        record.write(lines([(MOMENT + number, FOUR)]))
    record.close()
    assert [round(moment - MOMENT) for moment, _ in recorded(str(path))] == [0, 1, 2]


def test_who_reads_misses_nothing_that_the_writer_moves_on_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "record"
    record = RecordFile(str(path), 1, 4)

    def write(*numbers: int) -> None:
        for number in numbers:
            record.write(lines([(MOMENT + number, FOUR)]))

    write(0, 1, 2)
    reading = recorded(str(path))
    read = [next(reading)]
    write(3, 4, 5, 6)
    read += reading
    assert [round(moment - MOMENT) for moment, _ in read] == [0, 1, 2]
    record.close()


def test_what_does_not_go_in_whole_is_not_there_at_all(tmp_path: Path) -> None:
    path, line = tmp_path / "record", lines([(MOMENT, FOUR)])
    program = f"""
import errno
from ipmasq_agent.agent.record import RecordFile
record = RecordFile({str(path)!r}, 1 << 20, 2)
record.write({line!r})
for _ in range(2):
    try:
        record.write({line!r} * 2)
    except OSError as error:
        assert error.errno == errno.EFBIG, error
    else:
        raise AssertionError("it went in")
"""

    def bound() -> None:
        # A file that may not grow is cut off in the middle, as on a disk that is full.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * len(line) + 9, 2 * len(line) + 9))

    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    argv = [sys.executable, "-c", program]
    subprocess.run(argv, check=True, preexec_fn=bound, env=environment)
    assert path.read_text() == line


def test_lines_that_somebody_spoilt_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "record"
    good = lines([(MOMENT, FOUR)])
    path.write_text(f"{good[:30]}\n\nwhat?\n2026-11-27T14:03:11Z udp a b c\n{good}")
    assert [what for _, what in recorded(str(path))] == [FOUR]
    with pytest.raises(SourceError, match="there is no record"):
        list(recorded(str(tmp_path / "none")))
