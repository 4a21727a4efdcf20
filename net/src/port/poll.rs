//! The descriptors of a port: one that is readable when there is something to do, and what makes it so; and the card's.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::{TimeSpec, TimeValLike};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::packet::Node;

/// Beyond all nodes.
const WAKE: u64 = 1 << 32;
const TIMER: u64 = WAKE + 1;
const ARRIVAL: u64 = WAKE + 2;
/// Events taken at a time; what is left makes the descriptor readable again.
const EVENTS: usize = 64;

/// What has become of a link or the timer.
pub(super) enum Ready {
    Line { node: Node, readable: bool, writable: bool },
    Timer,
}

pub(super) struct Poll {
    epoll: Epoll,
    /// Written from any thread.
    wake: EventFd,
    timer: TimerFd,
    /// For packets on stretches of wire.
    arrival: TimerFd,
    /// Watched edge-triggered by the card; each write is an edge.
    card: EventFd,
}

impl Poll {
    pub(super) fn new() -> io::Result<Poll> {
        let event = || EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = || TimerFd::new(ClockId::CLOCK_MONOTONIC, flags);
        let poll = Poll { epoll, wake: event()?, timer: timer()?, arrival: timer()?, card: event()? };
        poll.epoll.add(&poll.wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        poll.epoll.add(&poll.timer, EpollEvent::new(EpollFlags::EPOLLIN, TIMER))?;
        poll.epoll.add(&poll.arrival, EpollEvent::new(EpollFlags::EPOLLIN, ARRIVAL))?;
        Ok(poll)
    }

    pub(super) fn add(&self, node: Node, link: BorrowedFd<'_>) -> io::Result<()> {
        Ok(self.epoll.add(link, event(node, false))?)
    }

    /// Whether room to write is looked for: only when there was none, since each packet that the peer reads makes some.
    pub(super) fn watch(&self, node: Node, link: BorrowedFd<'_>, room: bool) {
        // A descriptor that is there can be watched otherwise.
        let _ = self.epoll.modify(link, &mut event(node, room));
    }

    /// Makes the port's owner call `turn`.
    pub(super) fn wake(&self) {
        // A full counter wakes as well.
        let _ = self.wake.write(1);
    }

    /// Makes the card look for frames, and for room.
    pub(super) fn tell_card(&self) {
        let _ = self.card.write(1);
    }

    pub(super) fn card(&self) -> RawFd {
        self.card.as_fd().as_raw_fd()
    }

    /// How often the card was told since this was last asked, at least.
    #[cfg(test)]
    pub(super) fn card_count(&self) -> u64 {
        let count = self.card.read().unwrap_or(0);
        self.card.write(count).map_or(count, |_| count)
    }

    pub(super) fn start_timer(&self, after: Duration) {
        start(&self.timer, after);
    }

    /// Makes the port's owner call `turn` then.
    pub(super) fn wake_after(&self, after: Duration) {
        start(&self.arrival, after);
    }

    /// What has happened since this was last called.
    pub(super) fn ready(&self) -> Vec<Ready> {
        let mut events = [EpollEvent::empty(); EVENTS];
        let count = self.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
        let ready = events[..count].iter().filter_map(|event| match event.data() {
            WAKE => {
                let _ = self.wake.read();
                None
            }
            TIMER => {
                // It is readable, so this does not wait.
                let _ = self.timer.wait();
                Some(Ready::Timer)
            }
            ARRIVAL => {
                let _ = self.arrival.wait();
                None
            }
            node => {
                let has = |flags| event.events().intersects(flags);
                let end = EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
                let (readable, writable) = (has(EpollFlags::EPOLLIN | end), has(EpollFlags::EPOLLOUT | end));
                Some(Ready::Line { node: Node(node as u16), readable, writable })
            }
        });
        ready.collect()
    }

    /// Waits until something has happened.
    pub(super) fn wait(&self, at_most: Duration) {
        let timeout = PollTimeout::try_from(at_most).unwrap_or(PollTimeout::MAX);
        let _ = poll(&mut [PollFd::new(self.epoll.0.as_fd(), PollFlags::POLLIN)], timeout);
    }
}

impl AsRawFd for Poll {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.0.as_raw_fd()
    }
}

fn start(timer: &TimerFd, after: Duration) {
    // 0 would stop it.
    let after = TimeSpec::nanoseconds(after.as_nanos().max(1) as i64);
    let _ = timer.set(Expiration::OneShot(after), TimerSetTimeFlags::empty());
}

/// Edge-triggered: the port remembers what is ready until it is used up.
fn event(node: Node, room: bool) -> EpollEvent {
    let mut flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
    flags.set(EpollFlags::EPOLLOUT, room);
    EpollEvent::new(flags, node.0.into())
}
