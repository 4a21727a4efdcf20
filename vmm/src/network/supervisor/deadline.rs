//! How long a cut may take: as long as anything of it moves. Members are asked how far they are; when none is any further
//! for long, the cut is too late.
//!
//! Invariant: a member is asked again only when it has answered. One that stands still cannot make the supervisor wait for
//! room in its socket.

use std::time::{Duration, Instant};

use ckvmm_net::coordinator::{Input, Member};
use ckvmm_net::{Colour, Node};

use super::{Heard, Supervisor};
use crate::host::terminal::say;
use crate::network::message::{FromMember, SoFar, ToMember};

/// How often members are asked.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// After how many looks at which nothing has moved a cut is too late: five minutes, since nothing is seen to move while a
/// slow disk writes what fsync(2) has found in memory. The time of a supervisor that is itself stopped does not count.
const STILL_LOOKS_MAX: u32 = 300;

/// Of one cut.
#[derive(Debug)]
pub(super) struct Deadline {
    cut: Colour,
    next_look: Instant,
    /// Looks since something has moved.
    still: u32,
    members: Vec<Seen>,
}

/// Of a member.
#[derive(Debug, Clone, Default)]
struct Seen {
    so_far: Option<SoFar>,
    is_asked: bool,
}

impl Deadline {
    /// Of a cut that begins now.
    pub(super) fn new(cut: Colour, members: usize, now: Instant) -> Self {
        Deadline { cut, next_look: now + LOOK_EVERY, still: 0, members: vec![Seen::default(); members] }
    }

    /// When it is to be looked at.
    pub(super) fn next_look(&self) -> Instant {
        self.next_look
    }

    /// Who of those that are on is to be asked, or the cut that is too late.
    fn look(&mut self, now: Instant, members: &[Member]) -> Result<Vec<Node>, Colour> {
        self.next_look = now + LOOK_EVERY;
        self.still += 1;
        if self.still > STILL_LOOKS_MAX {
            return Err(self.cut);
        }
        let on = self.members.iter_mut().zip(0..).zip(members).filter(|(_, member)| **member == Member::On);
        let ask = |(seen, node): (&mut Seen, u16)| (!std::mem::replace(&mut seen.is_asked, true)).then_some(Node(node));
        Ok(on.filter_map(|(asked, _)| ask(asked)).collect())
    }

    /// Who has not answered since it was asked last.
    fn silent(&self) -> impl Iterator<Item = Node> {
        let members = self.members.iter().zip(0..);
        members.filter(|(seen, _)| seen.is_asked).map(|(_, node)| Node(node))
    }

    /// A member has said something: it has moved, unless it is as far as before.
    pub(super) fn heard(&mut self, node: Node, heard: &Heard) {
        let Some(seen) = self.members.get_mut(node.index()) else { return };
        if let Heard::Said(FromMember::SoFar(so_far)) = heard {
            seen.is_asked = false;
            if seen.so_far == *so_far {
                return;
            }
            seen.so_far.clone_from(so_far);
        }
        self.still = 0;
    }

    /// How far a member is, if it is at work.
    pub(super) fn so_far(&self, node: Node) -> Option<&SoFar> {
        self.members.get(node.index())?.so_far.as_ref()
    }
}

impl Supervisor {
    /// Looks at the cut that is being collected, if it is time.
    pub(super) fn look_at_cut(&mut self, now: Instant) {
        let due = self.deadline.as_mut().filter(|deadline| deadline.next_look() <= now);
        let looked = due.map(|deadline| deadline.look(now, self.coordinator.members()));
        match looked {
            None => {}
            Some(Ok(nodes)) => nodes.into_iter().for_each(|node| self.tell(node, &ToMember::HowFar, &[])),
            Some(Err(cut)) => {
                let deadline = self.deadline.take();
                let silent: Vec<Node> = deadline.iter().flat_map(Deadline::silent).collect();
                let names = self.seats.iter().zip(0..).filter(|(_, node)| silent.contains(&Node(*node)));
                let names: Vec<&str> = names.map(|(seat, _)| &*seat.name).collect();
                if !names.is_empty() {
                    say(&format!("{}: no answer; see whether it is stopped", names.join(", ")));
                }
                self.feed(Input::Deadline(cut));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CUT: Colour = Colour(7);
    const ON: [Member; 2] = [Member::On; 2];

    fn at(done_bytes: u64) -> Heard {
        let so_far = SoFar { phase: "memory".into(), done_bytes, total_bytes: 10, verified_bytes: 0 };
        Heard::Said(FromMember::SoFar(Some(so_far)))
    }

    /// One of two members.
    fn begun() -> (Deadline, Instant) {
        let now = Instant::now();
        (Deadline::new(CUT, 2, now), now)
    }

    #[test]
    fn a_cut_takes_as_long_as_anything_moves() {
        let (mut deadline, now) = begun();
        for look in 0..10 * u64::from(STILL_LOOKS_MAX) {
            assert!(deadline.look(now, &ON).is_ok());
            deadline.heard(Node(0), &at(0));
            // One is slow, and the other one waits for it.
            deadline.heard(Node(1), &at(look / u64::from(STILL_LOOKS_MAX)));
        }
        deadline.heard(Node(0), &Heard::Silence);
        for _ in 0..STILL_LOOKS_MAX {
            assert!(deadline.look(now, &ON).is_ok());
            deadline.heard(Node(1), &at(9));
        }
        assert_eq!(deadline.look(now, &ON), Err(CUT));
    }

    #[test]
    fn who_does_not_answer_is_asked_once() {
        let (mut deadline, now) = begun();
        assert_eq!(deadline.next_look(), now + LOOK_EVERY);
        assert_eq!(deadline.look(now, &ON), Ok(vec![Node(0), Node(1)]));
        deadline.heard(Node(1), &Heard::Said(FromMember::SoFar(None)));
        assert_eq!(deadline.silent().collect::<Vec<_>>(), [Node(0)]);
        assert_eq!(deadline.look(now, &ON), Ok(vec![Node(1)]));
        deadline.heard(Node(0), &at(3));
        assert_eq!(deadline.so_far(Node(0)).map(|so_far| so_far.done_bytes), Some(3));
        assert_eq!(deadline.look(now, &ON), Ok(vec![Node(0)]));
    }

    #[test]
    fn who_is_off_is_not_asked() {
        let (mut deadline, now) = begun();
        assert_eq!(deadline.look(now, &[Member::Off, Member::On]), Ok(vec![Node(1)]));
        assert_eq!(deadline.silent().collect::<Vec<_>>(), [Node(1)]);
    }
}
