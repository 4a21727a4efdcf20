//! The cut of one VM, told by hand what happens.

use super::*;

const LIMITS: Limits = Limits { slots: 2, pending_bytes: 4, log_bytes: 6 };

impl Payload for u8 {
    fn bytes(&self) -> usize {
        1
    }
}

/// Node 0 of three, with what it has said.
struct Vm {
    cut: Cut<u8>,
    /// The next `link_seq` of each link.
    next: [u64; 3],
}

impl Vm {
    fn new() -> Vm {
        let cut = Cut::new(Setup { me: Node(0), nodes: 3, incarnation: Incarnation(7), limits: LIMITS });
        Vm { cut, next: [0; 3] }
    }

    fn tell(&mut self, input: Input<u8>) -> Vec<Output<u8>> {
        let mut outputs = Vec::new();
        self.cut.handle(input, &mut outputs).unwrap();
        outputs
    }

    fn packet(&mut self, from: u16, colour: u64, content: Content<u8>) -> Packet<u8> {
        let link_seq = self.next[usize::from(from)];
        self.next[usize::from(from)] += 1;
        Packet { incarnation: Incarnation(7), colour: Colour(colour), link_seq, content }
    }

    fn arrives(&mut self, from: u16, colour: u64, content: Content<u8>) -> Vec<Output<u8>> {
        let packet = self.packet(from, colour, content);
        self.tell(Input::Arrived(Node(from), packet))
    }

    fn takes(&mut self, cut: u64) -> Vec<Output<u8>> {
        let mut outputs = self.tell(Input::CutRequested(Colour(cut)));
        outputs.extend(self.tell(Input::CutTaken(Colour(cut))));
        outputs
    }

    /// All that the guest gets.
    fn delivered(&mut self) -> Vec<u8> {
        std::iter::from_fn(|| self.cut.delivered()).collect()
    }

    /// All that goes out on a link: colours, and frames where there are any.
    fn sent(&mut self, to: u16) -> Vec<(u64, Option<u8>)> {
        let mut sent = Vec::new();
        while let Some(packet) = self.cut.next_to_send(Node(to)) {
            assert_eq!((packet.incarnation, packet.link_seq), (Incarnation(7), sent.len() as u64));
            let colour = packet.colour.0;
            sent.push((colour, self.cut.sent(Node(to))));
        }
        sent
    }
}

fn closed(cut: u64, log: &[(u16, u8)]) -> Output<u8> {
    Output::LinksClosed { cut: Colour(cut), log: log.iter().map(|(from, frame)| (Node(*from), *frame)).collect() }
}

#[test]
fn what_waits_for_the_guest_and_what_was_under_way_are_the_log_in_order() {
    let mut vm = Vm::new();
    vm.arrives(1, 0, Content::Frame(10));
    vm.arrives(2, 0, Content::Frame(20));
    assert_eq!(vm.takes(1), [Output::TakeCut(Colour(1))]);
    vm.arrives(2, 0, Content::Frame(21));
    vm.arrives(1, 1, Content::Marker);
    vm.arrives(1, 1, Content::Frame(11));
    assert_eq!(vm.arrives(2, 1, Content::Marker), [closed(1, &[(1, 10), (2, 20), (2, 21)])]);
    assert_eq!(vm.tell(Input::ImageDurable(Colour(1))), [Output::Prepared(Colour(1))]);
    assert_eq!(vm.delivered(), [10, 20, 21, 11], "the running guest gets all, once");
}

#[test]
fn a_packet_that_is_too_new_is_held_and_makes_the_cut() {
    let mut vm = Vm::new();
    assert_eq!(vm.arrives(1, 1, Content::Marker), [Output::TakeCut(Colour(1))]);
    assert!(!vm.cut.may_read(Node(1)) && vm.cut.may_read(Node(2)));
    vm.arrives(2, 0, Content::Frame(20));
    assert_eq!(vm.tell(Input::CutRequested(Colour(1))), [], "it is being taken");
    assert_eq!(vm.tell(Input::CutTaken(Colour(1))), []);
    assert!(vm.cut.may_read(Node(1)));
    assert_eq!(vm.arrives(2, 1, Content::Frame(21)), [closed(1, &[(2, 20)])], "a frame of its colour closes it, too");
    assert_eq!(vm.delivered(), [20, 21]);
}

#[test]
fn a_frame_has_the_colour_of_when_it_was_popped() {
    let mut vm = Vm::new();
    vm.tell(Input::GuestFrame(Route::To(Node(1)), 1));
    vm.tell(Input::GuestFrame(Route::Everyone, 2));
    vm.takes(1);
    assert!(!vm.cut.may_pop(), "a full link makes the guest wait");
    vm.takes(2);
    assert_eq!(vm.sent(1), [(0, Some(1)), (0, Some(2)), (2, None)], "the second marker says what the first did");
    assert!(vm.cut.may_pop());
    vm.tell(Input::GuestFrame(Route::To(Node(2)), 3));
    assert_eq!(vm.sent(2), [(0, Some(2)), (2, None), (2, Some(3))]);
}

#[test]
fn a_cut_that_fails_changes_the_colour_all_the_same() {
    let mut vm = Vm::new();
    vm.arrives(1, 1, Content::Marker);
    let why = || Why::Image("fork".into());
    assert_eq!(
        vm.tell(Input::CutFailed(Colour(1), "fork".into())),
        [Output::Failed(Colour(1), why()), Output::Discard(Colour(1))]
    );
    assert_eq!((vm.cut.colour(), vm.cut.wanted(), vm.cut.may_read(Node(1))), (Colour(1), None, true));
    assert_eq!(vm.sent(2), [(1, None)]);
    vm.takes(2);
    assert_eq!(
        vm.tell(Input::CutFailed(Colour(2), "fork".into())),
        [Output::Failed(Colour(2), why()), Output::Discard(Colour(2))],
        "and so does one of which only the writer fails"
    );
    assert_eq!(vm.tell(Input::CutFailed(Colour(2), "twice".into())), []);
}

#[test]
fn a_log_has_a_bound() {
    let mut vm = Vm::new();
    (0..4).for_each(|frame| _ = vm.arrives(1, 0, Content::Frame(frame)));
    vm.takes(1);
    assert_eq!(vm.delivered().len(), 4);
    assert_eq!(vm.arrives(1, 0, Content::Frame(4)), []);
    assert_eq!(vm.arrives(1, 0, Content::Frame(5)), []);
    let failed = Output::Failed(Colour(1), Why::LogFull { limit: 6 });
    assert_eq!(vm.arrives(1, 0, Content::Frame(6)), [failed, Output::Discard(Colour(1))]);
    assert_eq!(vm.delivered(), [4, 5, 6], "the guest does not notice");
}

#[test]
fn what_finds_the_inbox_full_is_dropped_and_not_logged() {
    let mut vm = Vm::new();
    (0..4).for_each(|frame| _ = vm.arrives(1, 0, Content::Frame(frame)));
    vm.takes(1);
    vm.arrives(1, 0, Content::Frame(4));
    vm.arrives(1, 1, Content::Marker);
    assert_eq!(vm.arrives(2, 1, Content::Marker), [closed(1, &[(1, 0), (1, 1), (1, 2), (1, 3)])]);
    assert_eq!(vm.cut.take_counters(), Counters { dropped: 1, dropped_late: 1, ..Counters::default() });
    vm.arrives(1, 1, Content::Frame(5));
    assert_eq!(vm.cut.take_counters(), Counters { dropped: 1, ..Counters::default() }, "not of the cut");
    assert_eq!(vm.cut.take_counters(), Counters::default());
}

#[test]
fn what_a_restore_puts_back_takes_no_room_from_others() {
    let mut vm = Vm::new();
    (0..6).for_each(|frame| vm.cut.preload(Node(1), frame));
    (6..10).for_each(|frame| _ = vm.arrives(2, 0, Content::Frame(frame)));
    assert_eq!(vm.cut.take_counters().dropped, 0);
    assert_eq!(vm.cut.delivered(), Some(0));
    vm.arrives(2, 0, Content::Frame(10));
    assert_eq!(vm.cut.take_counters().dropped, 1, "its room goes with it");
    assert_eq!(vm.delivered(), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    (0..4).for_each(|frame| _ = vm.arrives(2, 0, Content::Frame(frame)));
    assert_eq!(vm.cut.take_counters().dropped, 0);
}

#[test]
fn a_later_cut_ends_an_earlier_one() {
    let mut vm = Vm::new();
    vm.takes(1);
    let failed = [Output::Failed(Colour(1), Why::Superseded(Colour(2))), Output::Discard(Colour(1))];
    let outputs = vm.arrives(1, 2, Content::Marker);
    assert_eq!(outputs, [failed.to_vec(), vec![Output::TakeCut(Colour(2))]].concat());
    assert_eq!(vm.tell(Input::CutRequested(Colour(3))), [Output::TakeCut(Colour(3))]);
    // The machine was about to take 2.
    let failed = [Output::Failed(Colour(2), Why::Superseded(Colour(3))), Output::Discard(Colour(2))];
    assert_eq!(vm.tell(Input::CutTaken(Colour(2))), [failed.to_vec(), vec![Output::TakeCut(Colour(3))]].concat());
    assert_eq!(vm.tell(Input::ImageDurable(Colour(2))), [Output::Discard(Colour(2))]);
}

#[test]
fn what_is_aborted_before_it_is_taken_is_not_taken() {
    let mut vm = Vm::new();
    vm.arrives(1, 1, Content::Marker);
    assert_eq!(vm.tell(Input::Aborted(Colour(1))), [Output::Discard(Colour(1))]);
    assert_eq!((vm.cut.colour(), vm.cut.wanted(), vm.cut.may_read(Node(1))), (Colour(1), None, true));
    assert_eq!(vm.sent(2), [(1, None)], "others may hold for it");
    assert_eq!(vm.tell(Input::CutTaken(Colour(1))), [Output::Discard(Colour(1))], "it was on its way");
    assert_eq!(vm.tell(Input::CutRequested(Colour(1))), []);
}

#[test]
fn a_commit_of_what_is_not_whole_is_refused() {
    let mut vm = Vm::new();
    vm.takes(1);
    let error = vm.cut.handle(Input::Committed(Colour(1)), &mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains("committed before it was whole"), "{error}");
}

#[test]
fn a_guest_that_is_off_holds_up_nobody() {
    let mut vm = Vm::new();
    vm.takes(1);
    vm.arrives(1, 0, Content::Frame(1));
    vm.arrives(1, 0, Content::Bye);
    vm.tell(Input::LinkEnded(Node(1)));
    vm.tell(Input::GuestFrame(Route::Everyone, 9));
    vm.tell(Input::GuestFrame(Route::To(Node(1)), 9));
    assert_eq!(vm.cut.take_counters().unreachable, 1, "and nobody waits for room there");
    assert_eq!(vm.arrives(2, 1, Content::Marker), [closed(1, &[(1, 1)])]);
    assert_eq!(vm.sent(1), []);
}

#[test]
fn a_guest_that_powers_off_says_bye_behind_all_else() {
    let mut vm = Vm::new();
    vm.takes(1);
    vm.tell(Input::GuestFrame(Route::To(Node(1)), 5));
    vm.arrives(2, 2, Content::Marker);
    assert_eq!(vm.tell(Input::GuestOff), [], "what was held is let go");
    assert!(vm.cut.may_read(Node(2)) && !vm.cut.may_pop());
    assert_eq!(vm.tell(Input::CutRequested(Colour(3))), []);
    assert_eq!(vm.tell(Input::CutTaken(Colour(2))), [Output::Discard(Colour(2))]);
    assert_eq!(vm.sent(1), [(1, None), (1, Some(5)), (1, None)]);
}

#[test]
fn a_link_that_breaks_fails_the_cut_that_it_is_open_for() {
    let mut vm = Vm::new();
    vm.takes(1);
    vm.arrives(1, 1, Content::Marker);
    assert_eq!(vm.tell(Input::LinkEnded(Node(1))), [], "all of it had come");
    let lost = |cut, node| [Output::Failed(Colour(cut), Why::LinkLost(Node(node))), Output::Discard(Colour(cut))];
    assert_eq!(vm.tell(Input::LinkEnded(Node(2))), lost(1, 2));
    assert_eq!(vm.takes(2), [vec![Output::TakeCut(Colour(2))], lost(2, 1).to_vec()].concat());
}

#[test]
fn packets_of_another_life_or_that_came_before_are_nothing() {
    let mut vm = Vm::new();
    let packet = vm.packet(1, 0, Content::Frame(1));
    assert_eq!(vm.tell(Input::Arrived(Node(1), Packet { incarnation: Incarnation(6), ..packet })), []);
    assert_eq!(vm.tell(Input::Arrived(Node(1), packet)), []);
    assert_eq!(vm.tell(Input::Arrived(Node(1), packet)), []);
    assert_eq!(vm.delivered(), [1]);
    assert_eq!(vm.cut.take_counters(), Counters { fenced: 1, repeated: 1, ..Counters::default() });
}

#[test]
fn a_peer_that_breaks_the_rules_is_found() {
    let wrong = |vm: &mut Vm, from, packet| {
        let before = vm.cut.clone();
        let error = vm.cut.handle(Input::Arrived(Node(from), packet), &mut Vec::new()).unwrap_err();
        assert_eq!(vm.cut, before, "nothing has changed");
        error.to_string()
    };
    let mut vm = Vm::new();
    let gap = Packet { link_seq: 1, ..vm.packet(1, 0, Content::Frame(1)) };
    assert!(wrong(&mut vm, 1, gap).contains("a packet is missing"));
    let packet = Packet { link_seq: 0, ..gap };
    assert!(wrong(&mut vm, 3, packet).contains("no such node"));
    vm.takes(1);
    vm.arrives(2, 1, Content::Marker);
    let fallen = vm.packet(2, 0, Content::Frame(1));
    assert!(wrong(&mut vm, 2, fallen).contains("its colour fell"));
    let mut vm = Vm::new();
    vm.arrives(1, 0, Content::Bye);
    let after = vm.packet(1, 0, Content::Frame(1));
    assert!(wrong(&mut vm, 1, after).contains("follows its end"));
}
