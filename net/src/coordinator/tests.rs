//! The coordinator, told by hand what happens. A part is a number.

use super::*;
use crate::cut::Why;

type Said = Vec<Output<u32>>;

const ONE: Colour = Colour(1);
const TWO: Colour = Colour(2);

fn tell(coordinator: &mut Coordinator<u32>, input: Input<u32>) -> Said {
    let mut outputs = Vec::new();
    coordinator.handle(input, &mut outputs);
    outputs
}

fn to_all(nodes: &[u16], message: ToMember) -> Said {
    nodes.iter().map(|node| Output::Send(Node(*node), message)).collect()
}

/// One whose two members run.
fn running() -> Coordinator<u32> {
    let mut coordinator = Coordinator::new(vec![Member::On; 2]);
    assert_eq!(tell(&mut coordinator, Input::Ready(Node(1))), []);
    assert_eq!(tell(&mut coordinator, Input::Ready(Node(0))), to_all(&[0, 1], ToMember::Go));
    coordinator
}

/// And that collects the parts of cut 1.
fn collecting() -> Coordinator<u32> {
    let mut coordinator = running();
    assert_eq!(tell(&mut coordinator, Input::Requested), [Output::RecordIntent(ONE)]);
    let said = tell(&mut coordinator, Input::IntentRecorded(ONE));
    assert_eq!(said, [to_all(&[0, 1], ToMember::Cut(ONE)), vec![Output::StartClock(ONE)]].concat());
    coordinator
}

fn aborts(said: &[Output<u32>], reason: Reason) {
    assert_eq!(said, [Output::Decide(ONE, Verdict::Abort(reason))]);
}

#[test]
fn what_all_have_prepared_is_committed_and_only_then_told_and_pruned() {
    let mut coordinator = collecting();
    assert_eq!(tell(&mut coordinator, Input::Prepared(Node(1), ONE, 11)), []);
    let verdict = Verdict::Commit(vec![(Node(0), 10), (Node(1), 11)]);
    assert_eq!(tell(&mut coordinator, Input::Prepared(Node(0), ONE, 10)), [Output::Decide(ONE, verdict)]);
    assert_eq!(tell(&mut coordinator, Input::Deadline(ONE)), [], "it is being decided");
    let said = tell(&mut coordinator, Input::Decided(ONE, Decision::Commit));
    let done = vec![Output::Prune(ONE), Output::Done(ONE, Outcome::Committed)];
    assert_eq!(said, [to_all(&[0, 1], ToMember::Committed(ONE)), done].concat());
    assert_eq!(tell(&mut coordinator, Input::Requested), [Output::RecordIntent(TWO)]);
}

#[test]
fn one_member_that_fails_is_enough() {
    let mut coordinator = collecting();
    let why = || Why::Image("no space".into());
    assert_eq!(tell(&mut coordinator, Input::Failed(Node(1), Colour(0), why())), [], "of an older cut");
    aborts(&tell(&mut coordinator, Input::Failed(Node(1), ONE, why())), Reason::Failed(Node(1), why()));
    let said = tell(&mut coordinator, Input::Decided(ONE, Decision::Abort));
    let done = Output::Done(ONE, Outcome::Aborted(Reason::Failed(Node(1), why())));
    assert_eq!(said, [to_all(&[0, 1], ToMember::Aborted(ONE)), vec![done]].concat());
    assert!(coordinator.may_begin());
}

#[test]
fn the_deadline_names_who_is_late() {
    let mut coordinator = collecting();
    tell(&mut coordinator, Input::Prepared(Node(0), ONE, 10));
    aborts(&tell(&mut coordinator, Input::Deadline(ONE)), Reason::Late(vec![Node(1)]));
}

#[test]
fn with_a_member_lost_nothing_is_committed_and_nothing_begun() {
    let mut coordinator = collecting();
    aborts(&tell(&mut coordinator, Input::Lost(Node(0))), Reason::Lost(Node(0)));
    tell(&mut coordinator, Input::Decided(ONE, Decision::Abort));
    let refused = Output::Done(ONE, Outcome::Refused(Reason::Lost(Node(0))));
    assert_eq!(tell(&mut coordinator, Input::Requested), [refused]);
    assert_eq!(coordinator.members(), [Member::Lost, Member::On]);
}

#[test]
fn a_member_that_is_lost_before_it_is_ready_is_not_waited_for() {
    let mut outputs = Vec::new();
    let mut coordinator = Coordinator::<u32>::succeed(vec![Member::On, Member::On], Some((ONE, None)), &mut outputs);
    assert_eq!(outputs, []);
    assert_eq!(tell(&mut coordinator, Input::Ready(Node(1))), []);
    let abort = Output::Decide(ONE, Verdict::Abort(Reason::Orphaned));
    assert_eq!(tell(&mut coordinator, Input::Lost(Node(0))), [to_all(&[1], ToMember::Go), vec![abort]].concat());
}

#[test]
fn a_member_that_was_off_before_its_cut_is_not_missed() {
    let mut coordinator = collecting();
    tell(&mut coordinator, Input::Prepared(Node(0), ONE, 10));
    let commit = Output::Decide(ONE, Verdict::Commit(vec![(Node(0), 10)]));
    assert_eq!(tell(&mut coordinator, Input::Left(Node(1), Colour::NONE)), [commit]);
}

#[test]
fn a_member_that_ran_on_after_its_cut_is_part_of_it_or_it_is_none() {
    let mut coordinator = collecting();
    aborts(&tell(&mut coordinator, Input::Left(Node(1), ONE)), Reason::Left(Node(1)));
    let mut coordinator = collecting();
    tell(&mut coordinator, Input::Prepared(Node(1), ONE, 11));
    assert_eq!(tell(&mut coordinator, Input::Left(Node(1), ONE)), []);
    let both = Verdict::Commit(vec![(Node(0), 10), (Node(1), 11)]);
    assert_eq!(tell(&mut coordinator, Input::Prepared(Node(0), ONE, 10)), [Output::Decide(ONE, both)]);
}

#[test]
fn of_guests_that_are_all_off_there_is_no_checkpoint() {
    let mut coordinator = collecting();
    tell(&mut coordinator, Input::Left(Node(0), Colour::NONE));
    aborts(&tell(&mut coordinator, Input::Left(Node(1), Colour::NONE)), Reason::AllOff);
    tell(&mut coordinator, Input::Decided(ONE, Decision::Abort));
    let refused = Output::Done(ONE, Outcome::Refused(Reason::AllOff));
    assert_eq!(tell(&mut coordinator, Input::Requested), [refused]);
}

#[test]
fn one_that_takes_over_starts_all_and_ends_what_was_begun() {
    let mut outputs = Vec::new();
    let mut coordinator = Coordinator::succeed(vec![Member::On, Member::Off], Some((ONE, None)), &mut outputs);
    assert_eq!(outputs, []);
    let orphaned = Output::Decide(ONE, Verdict::Abort(Reason::Orphaned));
    let said = tell(&mut coordinator, Input::Ready(Node(0)));
    assert_eq!(said, [to_all(&[0], ToMember::Go), vec![orphaned]].concat());
    // The one before was quicker.
    let said = tell(&mut coordinator, Input::Decided(ONE, Decision::Commit));
    let done = vec![Output::Prune(ONE), Output::Done(ONE, Outcome::Committed)];
    assert_eq!(said, [to_all(&[0], ToMember::Committed(ONE)), done].concat());
    assert_eq!(tell(&mut coordinator, Input::Requested), [Output::RecordIntent(TWO)]);
}

#[test]
fn one_that_takes_over_tells_again_what_was_decided() {
    let mut outputs = Vec::new();
    let decided = Some((ONE, Some(Decision::Abort)));
    let mut coordinator = Coordinator::<u32>::succeed(vec![Member::On], decided, &mut outputs);
    assert_eq!(outputs, to_all(&[0], ToMember::Aborted(ONE)));
    assert_eq!(tell(&mut coordinator, Input::Ready(Node(0))), to_all(&[0], ToMember::Go));
    assert!(coordinator.may_begin());
}

#[test]
fn one_that_was_replaced_does_nothing_any_more() {
    let deposed = || Output::Done(ONE, Outcome::Aborted(Reason::Deposed));
    let mut coordinator = running();
    tell(&mut coordinator, Input::Requested);
    assert_eq!(tell(&mut coordinator, Input::IntentTaken(ONE)), [deposed()]);
    let refused = Output::Done(ONE, Outcome::Refused(Reason::Deposed));
    assert_eq!(tell(&mut coordinator, Input::Requested), [refused]);

    let mut coordinator = collecting();
    tell(&mut coordinator, Input::Prepared(Node(0), ONE, 10));
    tell(&mut coordinator, Input::Prepared(Node(1), ONE, 11));
    let said = tell(&mut coordinator, Input::Decided(ONE, Decision::Abort));
    assert_eq!(said, [to_all(&[0, 1], ToMember::Aborted(ONE)), vec![deposed()]].concat());
    assert!(coordinator.is_deposed());
}

#[test]
fn what_cannot_be_written_as_a_commit_is_aborted_and_else_asked_again() {
    let full = || String::from("no space");
    let mut coordinator = collecting();
    tell(&mut coordinator, Input::Prepared(Node(0), ONE, 10));
    tell(&mut coordinator, Input::Prepared(Node(1), ONE, 11));
    aborts(&tell(&mut coordinator, Input::StoreFailed(ONE, full())), Reason::Store(full()));
    let said = tell(&mut coordinator, Input::StoreFailed(ONE, full()));
    assert_eq!(said, [Output::Done(ONE, Outcome::Unknown(full()))]);
    aborts(&tell(&mut coordinator, Input::Requested), Reason::Orphaned);
    let said = tell(&mut coordinator, Input::StoreFailed(ONE, full()));
    assert_eq!(said, [Output::Done(ONE, Outcome::Refused(Reason::Store(full())))], "the new one is not begun");
    aborts(&tell(&mut coordinator, Input::Requested), Reason::Orphaned);
    let said = tell(&mut coordinator, Input::Decided(ONE, Decision::Abort));
    assert_eq!(said, [to_all(&[0, 1], ToMember::Aborted(ONE)), vec![Output::RecordIntent(TWO)]].concat());
}

#[test]
fn an_intent_that_cannot_be_written_costs_its_number_and_leaves_no_cut_open() {
    let mut coordinator = running();
    tell(&mut coordinator, Input::Requested);
    let aborted = Output::Done(ONE, Outcome::Aborted(Reason::Store("full".into())));
    assert_eq!(tell(&mut coordinator, Input::StoreFailed(ONE, "full".into())), [aborted]);
    // By another coordinator, which has begun it, it could be committed after the next one.
    aborts(&tell(&mut coordinator, Input::Requested), Reason::Orphaned);
    let said = tell(&mut coordinator, Input::Decided(ONE, Decision::Abort));
    assert_eq!(said, [to_all(&[0, 1], ToMember::Aborted(ONE)), vec![Output::RecordIntent(TWO)]].concat());
}

#[test]
fn one_cut_at_a_time() {
    let mut coordinator = collecting();
    let busy = Output::Done(ONE, Outcome::Refused(Reason::Busy));
    assert_eq!(tell(&mut coordinator, Input::Requested), [busy]);
    assert!(!coordinator.may_begin());
}
