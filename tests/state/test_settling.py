"""state/settling: bytes are believed after two equal looks, and not while somebody is saving."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from localdask.state.settling import EMPTY_S, PATIENCE_S, STEP_S, Look, Settling

GONE = Look(None, None, "x was deleted")


def look(content, stamp=None, is_whole=True):
    return Look(stamp or (len(content), content), content, is_whole=is_whole)


def watching(*names, content=b"old"):
    settling = Settling()
    for name in names:
        settling.watch(name, content, look(content).stamp)
    return settling


class Clock:
    """Plays a file that holds what ``content`` says at each moment, and takes a look whenever one is due."""

    def __init__(self, settling, content):
        self.settling, self.content, self.now = settling, content, 0.0

    def run(self, until=5.0):
        found = []
        while (due := self.settling.next_due()) is not None and due <= until:
            self.now = max(self.now, due)
            for name in self.settling.due(self.now):
                seen = self.content(name, self.now)
                self.settling.take(name, seen if isinstance(seen, Look) else look(seen), self.now)
            saved = self.settling.collect(self.now)
            if saved:
                found.append((round(self.now, 4), saved))
        return found


def test_a_save_is_believed_after_two_equal_looks_8_ms_apart():
    settling = watching("x")
    settling.notice("x", 0.0)
    assert Clock(settling, lambda name, now: b"new").run() == [(STEP_S, {"x": b"new"})]


def test_the_content_decides_and_not_the_stamp():
    settling = watching("x")
    settling.notice("x", 0.0)
    assert Clock(settling, lambda name, now: look(b"old", stamp="touched")).run() == []
    assert not settling.pending and settling.stamps["x"] == "touched"


def test_while_the_size_changes_the_pause_grows_to_64_ms():
    settling = watching("x")
    settling.notice("x", 0.0)
    pauses, now = [], 0.0
    for number in range(1, 6):
        settling.take("x", look(b"a" * number), now)
        pauses.append(round(settling.next_due() - now, 4))
        now = settling.next_due()
    assert pauses == [0.008, 0.016, 0.032, 0.064, 0.064]


def test_a_file_that_is_saved_without_end_is_believed_every_300_ms():
    settling = watching("x")
    settling.notice("x", 0.0)
    ((when, saved),) = Clock(settling, lambda name, now: b"%d" % (now * 10_000)).run()
    assert PATIENCE_S <= when <= PATIENCE_S + 0.064
    assert saved == {"x": b"%d" % (when * 10_000)}


def test_bytes_that_were_written_during_the_look_are_never_believed():
    settling = watching("x")
    settling.notice("x", 0.0)
    assert Clock(settling, lambda name, now: look(b"ha", is_whole=now > 0.4)).run()[0][0] > 0.399


def test_an_empty_file_is_not_believed_for_250_ms():
    settling = watching("x")
    settling.notice("x", 0.0)
    assert Clock(settling, lambda name, now: b"").run() == [(EMPTY_S, {"x": b""})]


def test_a_file_that_is_empty_at_every_look_but_written_in_between_is_not_believed_to_be_empty():
    settling = watching("x")
    settling.notice("x", 0.0)
    assert Clock(settling, lambda name, now: look(b"", stamp=now) if now < 2 else b"new").run()[0][1] == {"x": b"new"}


def test_truncate_then_write_gives_the_written_bytes_only_and_soon():
    settling = watching("x")
    settling.notice("x", 0.0)
    clock = Clock(settling, lambda name, now: b"" if now < 0.02 else b"new")
    assert clock.run(0.02) == []
    settling.notice("x", 0.02)
    assert clock.run() == [(0.028, {"x": b"new"})]


def test_a_deletion_is_told_once_and_a_new_file_is_seen():
    settling = watching("x")
    settling.notice("x", 0.0)
    clock = Clock(settling, lambda name, now: GONE)
    assert clock.run() == [] and settling.collect_troubles() == ["x was deleted"]
    settling.compare("x", None, 1.0)
    assert clock.run() == [] and settling.collect_troubles() == []
    settling.compare("x", "there", 2.0)
    assert list(Clock(settling, lambda name, now: b"new").run()[0][1].values()) == [b"new"]


def test_a_file_that_moves_away_and_back_within_250_ms_is_no_deletion():
    settling = watching("x")
    settling.notice("x", 0.0)
    assert Clock(settling, lambda name, now: GONE if now < 0.2 else b"old").run() == []
    assert settling.collect_troubles() == []


def test_trouble_is_told_once_tried_again_and_told_again_after_it_went():
    settling = watching("x")
    refused = Look("there", None, "x cannot be read")
    for told in (["x cannot be read"], []):
        settling.compare("x", "there", 0.0)
        assert settling.pending, "what cannot be read is tried again though its stamp is the same"
        assert Clock(settling, lambda name, now: refused).run() == [] and settling.collect_troubles() == told
    settling.compare("x", "there", 1.0)
    Clock(settling, lambda name, now: b"new").run()
    settling.notice("x", 2.0)
    Clock(settling, lambda name, now: refused).run()
    assert settling.collect_troubles() == ["x cannot be read"]


def test_a_burst_is_handed_over_at_once():
    settling = watching("x", "y", "z")
    for name, when in (("x", 0.0), ("y", 0.005), ("z", 0.012)):
        clock = Clock(settling, lambda name, now: b"new")
        assert clock.run(when) == []
        settling.notice(name, when)
    assert clock.run() == [(0.02, {"x": b"new", "y": b"new", "z": b"new"})]


def test_a_file_that_never_settles_holds_the_others_back_for_300_ms_at_most():
    settling = watching("x", "y")
    settling.notice("x", 0.0)
    settling.notice("y", 0.0)
    ((when, saved),) = Clock(settling, lambda name, now: b"new" if name == "x" else look(b"%f" % now, is_whole=False)).run(1.0)
    assert saved == {"x": b"new"} and PATIENCE_S <= when <= PATIENCE_S + STEP_S + 0.001


def test_a_file_that_is_gone_holds_nobody_back():
    settling = watching("x", "y")
    settling.notice("y", 0.0)
    settling.notice("x", 0.0)
    assert Clock(settling, lambda name, now: b"new" if name == "x" else GONE).run()[0] == (STEP_S, {"x": b"new"})


def test_a_path_that_is_forgotten_is_not_looked_at_nor_handed_over():
    settling = watching("x")
    settling.notice("x", 0.0)
    settling.forget("x")
    settling.notice("x", 0.0)
    assert settling.next_due() is None and list(settling.names()) == []


@given(st.lists(st.tuples(st.floats(0.0, 0.1), st.sampled_from([b"", b"a", b"bb", b"old", None])), min_size=1, max_size=30), st.booleans())
def test_whatever_is_saved_when_the_newest_bytes_are_what_is_known_in_the_end(saves, are_noticed):
    settling = watching("x")
    moments, now = [], 0.0
    for pause, content in saves:
        now += pause
        moments.append((now, content))

    def content_at(name, when):
        content = [content for moment, content in moments if moment <= when]
        return look(b"old") if not content else GONE if content[-1] is None else look(content[-1], stamp=(len(content), content[-1]))

    clock = Clock(settling, content_at)
    handed = []
    for moment, _ in moments:
        handed += clock.run(moment)
        if are_noticed:
            settling.notice("x", moment)
    for beat in (now + 1, now + 2):
        handed += clock.run(beat)
        settling.compare("x", content_at("x", beat).stamp, beat)
        clock.now = beat
    handed += clock.run(now + 5)
    contents = [b"old", *(saved["x"] for _, saved in handed)]
    assert all(one != other for one, other in zip(contents, contents[1:]))
    final = moments[-1][1]
    if final is not None:
        assert contents[-1] == final == settling.known["x"]
    assert not settling.pending
