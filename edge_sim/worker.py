"""One simulated device: takes inputs, decides, computes, sends, and always ends by its deadline.

The same code runs in virtual time against a model of a server and on the wall clock against a real one: all that
differs is behind FleetClock and FleetServer. Links and devices say when something is done; the clock is what waits.

All policies share what happens when something goes wrong. While the device can still finish by itself before the
deadline, it waits for the server until the last moment at which it has to begin; then it finishes what the head left to
do, and an answer that comes later is ignored. What can be finished neither there nor here is given up.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from edge_sim.bandwidth import BandwidthEstimate
from edge_sim.clock import FleetClock
from edge_sim.conduct import Choices, Conduct, PathFacts
from edge_sim.device import Device
from edge_sim.fleet_server import Ask, Refused
from edge_sim.link import Delivery, Link
from edge_sim.plan import DEVICE_ONLY, PlanOption
from edge_sim.policy import FixedPolicy, Policy, View, latency_s
from edge_sim.power_meter import PowerMeter
from edge_sim.request_record import ANSWERED, DROPPED, GAVE_UP, LOCALLY, Request, RequestWriter, how_text, who_text
from edge_sim.send_bias import SendBias

# Of this machine's scheduling, not of its speed.
HOST_SLACK_S = 2e-3
# After so long without a transfer, half of what a device believes of its bandwidth is its profile's promise again.
FORGETTING_S = 30.0


class EdgeWorker:
    """One device of a fleet."""

    def __init__(
        self,
        *,
        name: str,
        group: str,
        group_index: int,
        clock: FleetClock,
        device: Device,
        link: Link,
        power: PowerMeter,
        choices: Choices,
        conduct: Conduct,
        writer: RequestWriter,
        rng: random.Random,
        path: PathFacts,
    ) -> None:
        self.name = name
        self.group = group
        self._group_index = group_index
        self._clock = clock
        self._device = device
        self._link = link
        self._power = power
        self._conduct = conduct
        self._writer = writer
        self._rng = rng
        self._path = path
        self._estimate = BandwidthEstimate()
        self._observed_s = 0.0
        self._bias = SendBias()
        self._view = View(deadline_s=conduct.deadline_s, delay_s=path.round_trip_s)
        self._in_flight = 0
        self._epoch = 0
        self._ready_s = 0.0
        self._up_free_s = 0.0
        self._stuck_until_s = 0.0
        self._allowance = conduct.upload_limit_bytes_per_s or 0.0
        self._allowance_s = 0.0
        self.bad_share = 0.0
        """Of the frames that are damaged before they are sent: a fault of the scenario."""
        self.away_until_s = 0.0
        """The device has left until then, and takes no inputs."""
        self._use(choices)

    @property
    def model(self) -> str:
        """Of the requests that begin now."""
        return self._choices.model

    def switch(self, choices: Choices) -> None:
        """Another model, split point or policy from now on: a handshake and a load, during which frames are dropped.

        Answers to what was sent before are stale, and dropped when they come.
        """
        now_s = self._clock.now_s()
        self._epoch += 1
        self._ready_s = now_s + self._path.round_trip_s + self._conduct.switch_s
        self._use(choices)

    def _use(self, choices: Choices) -> None:
        self._choices = choices
        self._who = who_text(device=self.name, group=self.group, policy=choices.policy.name, model=choices.model)
        every = [*choices.options, choices.whole]
        self._how = {
            id(option): how_text(mode=option.mode, split_point=option.split_point, codec=option.codec)
            for option in every
        }

    async def live(self, arrivals_s: Iterator[float], *, inputs: Callable[[int], int]) -> None:
        """Take inputs at these moments until there are none; `inputs` gives the input of each."""
        clock = self._clock
        for number, intended_s in enumerate(arrivals_s):
            await clock.sleep_until(intended_s)
            now_s = clock.now_s()
            if now_s < self.away_until_s:
                continue
            request = Request(number, intended_s, now_s - intended_s)
            reason = self._refuses(now_s)
            if reason is not None:
                request.reason = reason
                self._end(request, self._choices.whole, self._who)
                continue
            clock.start(self._answer(request, inputs(number)))

    def _refuses(self, now_s: float) -> str | None:
        """Why an input is dropped before anything is done for it; None where it is not."""
        if self._power.is_empty(now_s):
            return "battery_empty"
        if now_s < self._ready_s:
            return "switching"
        if self._in_flight >= self._conduct.max_in_flight:
            return "device_busy"
        return None

    async def _answer(self, request: Request, item: int) -> None:
        self._in_flight += 1
        # Those of now to the end, whatever is switched meanwhile: options and inputs of one model are not another's.
        epoch, who, choices = self._epoch, self._who, self._choices
        policy = choices.policy
        item %= choices.inputs
        try:
            if isinstance(policy, FixedPolicy):
                option = policy.option
                await self._process(choices, request, option, item)
            else:
                option = self._choose(policy)
                began_s = self._clock.now_s()
                expected_s = latency_s(self._view, option) - self._view.send_bias_s
                await self._process(choices, request, option, item)
                # What was given up before it was sent says nothing of asking.
                if option.mode != DEVICE_ONLY and (request.outcome in (ANSWERED, LOCALLY) or request.attempts):
                    now_s = self._clock.now_s()
                    self._bias.learn(now_s=now_s, expected_s=expected_s, took_s=now_s - began_s)
        finally:
            self._in_flight -= 1
        if epoch != self._epoch and request.outcome != DROPPED:
            request.outcome, request.reason, request.correct = DROPPED, "stale", None
        self._end(request, option, who)

    def _choose(self, policy: Policy) -> PlanOption:
        choices, view, device = self._choices, self._view, self._device
        now_s = self._clock.now_s()
        view.wait_s = max(0.0, device.free_at_s - now_s)
        view.slowdown = 1.0 / device.speed(now_s)
        view.up_bytes_per_s = self._believed_bytes_per_s(now_s)
        view.up_queue_s = max(0.0, self._up_free_s - now_s)
        view.server_wait_s = choices.server.reported_wait_s()
        view.service_s = choices.service_s
        view.down_s = choices.reply_bytes / self._path.down_bytes_per_s
        view.send_bias_s = self._bias.seconds(now_s)
        self._power.fill(view, now_s=now_s)
        return policy.choose(view, choices.options)

    async def _process(self, choices: Choices, request: Request, option: PlanOption, item: int) -> None:
        clock, device = self._clock, self._device
        deadline_s = request.intended_s + self._conduct.deadline_s
        now_s = clock.now_s()
        size = option.sizes[item] if option.sizes else 0
        if option.mode == DEVICE_ONLY:
            await self._finish_here(choices, request, option.head_s, deadline_s, item, whole=True)
            return
        is_down = self._link.is_down(now_s)
        if is_down or now_s < self._stuck_until_s:
            # Nothing can be sent: the whole model here, without a detour over the head.
            request.reason = "link_down" if is_down else "link_stalled"
            await self._finish_here(choices, request, choices.whole.head_s, deadline_s, item, whole=True)
            return
        if option.head_s > 0:
            end_s = device.would_end_s(now_s, option.head_s)
            if end_s > deadline_s:
                request.outcome, request.reason = GAVE_UP, "deadline"
                return
        # Only what will be sent is held against the limit, and before anything is computed for it.
        if not self._may_send(size, now_s):
            request.reason = "upload_limit"
            return
        if option.head_s > 0:
            start_s, end_s = device.compute(now_s, option.head_s)
            request.wait_s, request.head_s = start_s - now_s, end_s - start_s
            request.compute_j += self._power.compute(start_s, end_s - start_s)
            body = await self._computed(choices, option.index, item, start_s, end_s)
        else:
            body = None
        if await self._send(choices, request, option, size, deadline_s, item, body):
            return
        await self._finish_here(choices, request, option.rest_s, deadline_s, item, whole=False)

    async def _send(
        self,
        choices: Choices,
        request: Request,
        option: PlanOption,
        size: int,
        deadline_s: float,
        item: int,
        body: bytes | None,
    ) -> bool:
        """Whether the server's answer came in time; else `request.reason` says why not."""
        clock, link, conduct = self._clock, self._link, self._conduct
        while True:
            now_s = clock.now_s()
            rest_s = option.rest_s / self._device.speed(now_s)
            # Beyond the deadline where the device could not finish by itself anyway.
            last_s = deadline_s - rest_s - clock.late_s
            if last_s <= now_s or self._device.would_end_s(now_s, option.rest_s) > deadline_s:
                last_s = deadline_s
            if last_s <= now_s:
                # On the wall clock, where this machine is late itself.
                request.reason = request.reason or "deadline"
                return False
            if link.is_down(now_s):
                request.reason = "link_down"
                return False
            if request.attempts and not self._may_send(size, now_s):
                # What refused it the first time stays the reason.
                return False
            up = link.deliver_up(now_s, size)
            request.attempts += 1
            request.up_bytes += size
            queued_s, transmission_s, _, loss_s, arrives_at_s = up
            late = arrives_at_s > last_s
            stages = _cut_off(up, last_s - now_s) if late else up
            request.up_queue_s += stages[0]
            request.up_s += stages[1]
            request.up_propagation_s += stages[2]
            request.up_loss_s += stages[3]
            sends_s = transmission_s + loss_s
            left_s = now_s + queued_s + transmission_s + loss_s
            if left_s > self._up_free_s:
                self._up_free_s = left_s
            request.radio_j += self._power.send(now_s + queued_s, sends_s, size)
            if late:
                await clock.sleep_until(last_s)
                # It was on its way for so long, and did not get through.
                self._observe(size * _share_sent(up, last_s - now_s), last_s - now_s)
                # A later frame would wait behind this one; whether it has left by then, the device will see.
                self._stuck_until_s = max(self._stuck_until_s, left_s)
                request.reason = "link_too_slow"
                return False
            await clock.sleep_until(arrives_at_s)
            self._observe(size, queued_s + transmission_s + loss_s)
            request.bandwidth_mbit_s = self._estimate.megabits_per_s
            bad = self.bad_share > 0 and self._rng.random() < self.bad_share
            ask = Ask(option.index, option.split_point or "input", item, size, self._group_index, bad, body)
            result = await choices.server.infer(ask, until_s=last_s)
            if result is None:
                request.reason = "server_too_slow"
                return False
            if isinstance(result, Refused):
                request.reason = result.reason
                if result.retry_after_s is None or request.attempts >= conduct.max_attempts:
                    return False
                pause_s = result.retry_after_s * (1 + conduct.retry_jitter * self._rng.random())
                if clock.now_s() + pause_s + transmission_s + self._path.round_trip_s + choices.service_s > last_s:
                    return False
                await clock.sleep_until(clock.now_s() + pause_s)
                continue
            request.server_queue_s, request.server_s = result.queue_s, result.service_s
            now_s = clock.now_s()
            down = link.deliver_down(now_s, result.body_bytes)
            request.down_bytes = result.body_bytes
            if down.arrives_at_s > last_s:
                await clock.sleep_until(last_s)
                request.reason = "link_too_slow"
                return False
            request.down_s = down.arrives_at_s - now_s
            await clock.sleep_until(down.arrives_at_s)
            request.outcome, request.reason = ANSWERED, None
            correct = option.correct[item] if option.correct else None
            request.correct = False if result.right is False else correct
            return True

    def _observe(self, size_bytes: float, duration_s: float) -> None:
        now_s = self._clock.now_s()
        self._estimate.observe(now_s=now_s, size_bytes=int(size_bytes), duration_s=duration_s)
        self._observed_s = now_s

    def _believed_bytes_per_s(self, now_s: float) -> float:
        """What was measured, and more and more what the profile promises as that gets old.

        Without it a device that once saw a slow link, and has computed everything itself since, would never try again.
        """
        promised = self._path.up_bytes_per_s
        measured = self._estimate.megabits_per_s
        if measured is None:
            return promised
        weight = 0.5 ** ((now_s - self._observed_s) / FORGETTING_S)
        return float(max(measured * 125e3, 1.0) ** weight * promised ** (1 - weight))

    async def _finish_here(
        self, choices: Choices, request: Request, seconds: float, deadline_s: float, item: int, *, whole: bool
    ) -> None:
        """Compute what is left of the model on the device, if that can be done in time."""
        now_s = self._clock.now_s()
        device = self._device
        if device.would_end_s(now_s, seconds) > deadline_s:
            request.outcome = GAVE_UP
            request.reason = request.reason or "deadline"
            return
        start_s, end_s = device.compute(now_s, seconds)
        request.wait_s += start_s - now_s
        request.local_s = end_s - start_s
        request.compute_j += self._power.compute(start_s, end_s - start_s)
        if whole:
            await self._computed(choices, choices.whole.index, item, start_s, end_s)
        else:
            await self._clock.sleep_until(end_s)
        request.outcome = LOCALLY
        correct = choices.whole.correct
        request.correct = correct[item] if correct else None

    async def _computed(self, choices: Choices, option: int, item: int, start_s: float, end_s: float) -> bytes | None:
        """Return when the device has ended the job; what it computed, where this machine does compute it.

        Never before its device would have ended, and later, and counted, where this machine was slower.
        """
        clock, heads = self._clock, choices.heads
        if heads is None:
            await clock.sleep_until(end_s)
            return None
        # Jobs before this one are still being computed; this one may begin when they are done.
        await clock.sleep_until(start_s)
        job = heads.begin(option, item)
        await clock.sleep_until(end_s)
        late_from_s = clock.now_s()
        body = await job
        if clock.now_s() - late_from_s > HOST_SLACK_S:
            heads.too_slow += 1
        return body or None

    def _may_send(self, size: int, now_s: float) -> bool:
        limit = self._conduct.upload_limit_bytes_per_s
        if limit is None:
            return True
        self._allowance = min(limit, self._allowance + (now_s - self._allowance_s) * limit)
        self._allowance_s = now_s
        if size > self._allowance:
            return False
        self._allowance -= size
        return True

    def _end(self, request: Request, option: PlanOption, who: str) -> None:
        now_s = self._clock.now_s()
        total_s = request.total_s = now_s - request.intended_s
        conduct = self._conduct
        if request.outcome == ANSWERED or request.outcome == LOCALLY:
            request.in_time = total_s <= conduct.deadline_s
        if request.outcome != DROPPED or request.attempts:
            request.idle_j = self._power.idle(request.intended_s, now_s)
        self._writer.write(who, self._how[id(option)] if id(option) in self._how else self._other(option), request)

    def _other(self, option: PlanOption) -> str:
        # An option of before the last switch.
        return how_text(mode=option.mode, split_point=option.split_point, codec=option.codec)


def _cut_off(up: Delivery, after_s: float) -> list[float]:
    """Queue, transmission, propagation and retransmission of a message that was given up, as far as they went."""
    went = []
    for stage_s in up[:4]:
        went.append(min(stage_s, after_s))
        after_s -= went[-1]
    return went


def _share_sent(up: Delivery, after_s: float) -> float:
    """Share of a message that has left so long after it was handed over."""
    if up.transmission_s <= 0:
        return 1.0 if after_s >= up.queued_s else 0.0
    return min(1.0, max(0.0, (after_s - up.queued_s) / up.transmission_s))
