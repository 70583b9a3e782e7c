"""What is sent: the proportions asked for, the same sequence for any number of workers."""

from __future__ import annotations

from collections import Counter

import pytest

from loadtests.payload_traffic import PayloadTraffic
from split_inference.errors import UsageError
from split_inference.wire import decode_frame
from tests.loadtests.helpers import payload_file


def test_options_come_in_the_proportions_of_the_files_traffic(tmp_path):
    with payload_file(tmp_path, body_bytes=(300, 600, 900), shares=(0.5, 0.3, 0.2)) as file:
        traffic = PayloadTraffic([file])
        seen = Counter(traffic.request(number).label for number in range(20_000))
    for label, share in zip(traffic.labels, (0.5, 0.3, 0.2), strict=True):
        assert seen[label] / 20_000 == pytest.approx(share, abs=0.02)
    assert traffic.shares() == pytest.approx(dict(zip(traffic.labels, (0.5, 0.3, 0.2), strict=True)))


def test_a_file_without_traffic_sends_its_options_equally(tmp_path):
    with payload_file(tmp_path, body_bytes=(300, 600)) as file:
        assert list(PayloadTraffic([file]).shares().values()) == [0.5, 0.5]


def test_two_models_are_mixed_by_weight_and_named(tmp_path):
    with payload_file(tmp_path, "small") as small, payload_file(tmp_path, "large", body_bytes=(9000,)) as large:
        traffic = PayloadTraffic([small, large], weights=(3, 1))
        seen = Counter(traffic.request(number).model for number in range(8000))
        assert seen[0] / 8000 == pytest.approx(0.75, abs=0.02)
        assert all(label.startswith(("small: ", "large: ")) for label in traffic.labels)
        assert traffic.mean_body_bytes == pytest.approx(0.75 * 2000 + 0.25 * 9000, rel=0.05)


def test_request_n_depends_on_the_seed_and_n_alone(tmp_path):
    with payload_file(tmp_path, body_bytes=(300, 600)) as file:
        forward, backward = PayloadTraffic([file], seed=5), PayloadTraffic([file], seed=5)
        numbers = [0, 1, 1023, 1024, 5000]
        ahead = [forward.request(number) for number in numbers]
        assert [backward.request(number) for number in reversed(numbers)] == ahead[::-1]
        other = PayloadTraffic([file], seed=6)
        assert [other.request(number).body for number in range(50)] != [forward.request(n).body for n in range(50)]


def test_bodies_are_those_of_the_file_with_their_answers(tmp_path):
    with payload_file(tmp_path, inputs=5) as file:
        traffic = PayloadTraffic([file])
        known = {file.body(0, index): answer for index, answer in enumerate(file.header.options[0].answer)}
        seen = set()
        for number in range(200):
            request = traffic.request(number)
            assert request.answer == known[request.body]
            assert decode_frame(request.body).sample_count == 1
            seen.add(request.body)
        assert seen == set(known)


def test_one_option_can_be_chosen_by_number_or_title(tmp_path):
    with payload_file(tmp_path, body_bytes=(300, 600)) as file:
        for option in ("1", file.header.options[1].title):
            assert PayloadTraffic([file], option=option).labels == (file.header.options[1].title,)


def test_options_can_be_mixed_by_weight(tmp_path):
    with payload_file(tmp_path, body_bytes=(300, 600, 900)) as file:
        titles = [option.title for option in file.header.options]
        shares = PayloadTraffic([file], option=f"{titles[0]}=3; 2").shares()
    assert shares == {titles[0]: 0.75, titles[2]: 0.25}


@pytest.mark.parametrize(
    "asked",
    [
        {"option": "7"},
        {"option": "0=x"},
        {"option": "0=-1"},
        {"option": "0=0"},
        {"mode": "server_only"},
        {"weights": (1.0, 2.0)},
        {"weights": (-1.0,)},
        {"weights": (0.0,)},
    ],
)
def test_what_no_file_has_is_refused_in_one_line(tmp_path, asked):
    with payload_file(tmp_path) as file, pytest.raises(UsageError) as caught:
        PayloadTraffic([file], **asked)
    assert "\n" not in str(caught.value)


def test_no_file_is_refused():
    with pytest.raises(UsageError, match="payload"):
        PayloadTraffic([])
