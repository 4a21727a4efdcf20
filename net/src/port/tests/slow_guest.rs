//! A guest that takes frames late, or not, or cannot.

use super::*;
use crate::cut::Why;

#[test]
fn a_guest_that_takes_frames_is_waited_for_and_one_that_takes_none_is_not() {
    let vms = network(&[1, 1]);
    let (sender, receiver) = (&vms[0].port, &vms[1]);
    sender.write(&frame(1, 0, 100)).unwrap();
    receiver.port.turn();
    assert_eq!(receiver.got(), [0]);
    let fill = |from: u32| {
        let mut sent = from;
        while sender.may_write() {
            sender.write(&frame(1, sent, 60_000)).unwrap();
            sent += 1;
            receiver.port.turn();
            sender.turn();
        }
        sent
    };
    let sent = fill(1);
    assert!((18..60).contains(&sent), "{sent}: it reads ahead, and then not");
    let deadline = Instant::now() + Duration::from_secs(10);
    while !sender.may_write() {
        assert!(Instant::now() < deadline, "a dead guest stalls the others");
        receiver.port.0.poll.wait(Duration::from_secs(5));
        receiver.port.turn();
        sender.turn();
    }
    for more in 0..200 {
        sender.write(&frame(1, sent + more, 60_000)).unwrap();
        receiver.port.turn();
        sender.turn();
    }
    assert!(receiver.port.counters().dropped > 0);
    let got = receiver.got();
    assert!(got.is_sorted() && got[0] == 1, "what it gets in the end is in order");
}

#[test]
fn what_a_cut_has_lost_is_what_was_sent_before_it() {
    let vms = network(&[1, 1]);
    let (sender, receiver) = (&vms[0].port, &vms[1].port);
    let dropped = || receiver.counters().dropped;
    let deadline = Instant::now() + Duration::from_secs(30);
    // Until the guest, which takes nothing, loses some more.
    let lose = || {
        let before = dropped();
        while dropped() == before {
            assert!(Instant::now() < deadline, "nothing is dropped");
            if sender.may_write() {
                sender.write(&frame(1, 0, 60_000)).unwrap();
            }
            receiver.turn();
            sender.turn();
        }
    };
    // Nothing is under way behind what it has lost.
    let settle = || {
        while sender.lock().cut.next_to_send(Node(1)).is_some() {
            assert!(Instant::now() < deadline, "a dead guest stalls the others");
            receiver.turn();
            sender.turn();
        }
        receiver.turn();
    };
    let take = |port: &Port| {
        port.tell(Input::CutRequested(ONE)).unwrap();
        port.tell(Input::CutTaken(ONE)).unwrap();
    };
    lose();
    settle();
    let before = dropped();
    take(receiver);
    assert_eq!(receiver.dropped_before_cut(), before);
    lose();
    settle();
    let late = dropped();
    assert!(late > before);
    take(sender);
    lose();
    assert!(dropped() > late);
    assert_eq!(receiver.dropped_before_cut(), late);
}

#[test]
fn who_stands_still_in_many_cuts_loses_nothing() {
    let vms = network(&[1, 1]);
    let (sender, receiver) = (&vms[0].port, &vms[1]);
    // It takes frames, and is asked whether it still does when it can take none.
    let mut sent = 0;
    let mut fill = || {
        while sender.may_write() {
            sender.write(&frame(1, sent, 60_000)).unwrap();
            sent += 1;
        }
        sent
    };
    fill();
    receiver.port.turn();
    let mut got = receiver.got();
    let mut log_was_full = false;
    for cut in (1..).map(Colour).take_while(|cut| cut.0 < 40) {
        fill();
        for port in [&receiver.port, sender] {
            port.tell(Input::CutRequested(cut)).unwrap();
            port.tell(Input::CutTaken(cut)).unwrap();
        }
        receiver.port.stand();
        let attended = receiver.port.clone();
        let attends = std::thread::spawn(move || attended.complete_cut());
        while !attends.is_finished() {
            sender.turn();
        }
        attends.join().unwrap();
        let failed = |event| matches!(event, Event::Cut(Output::Failed(_, Why::LogFull { .. })));
        log_was_full |= receiver.events.try_iter().any(failed);
    }
    assert!(log_was_full, "what it keeps has bounds");
    let sent = fill();
    let deadline = Instant::now() + Duration::from_secs(30);
    while got.len() < sent as usize {
        assert!(Instant::now() < deadline, "{} of {sent}: {:?}", got.len(), receiver.port.counters());
        receiver.port.turn();
        got.extend(receiver.got());
        sender.turn();
    }
    assert_eq!(got, (0..sent).collect::<Vec<_>>());
    assert_eq!(receiver.port.counters().dropped, 0);
}

#[test]
fn who_completes_a_cut_leaves_the_links_to_a_machine_that_runs_again() {
    let vms = network(&[1, 1]);
    let port = vms[0].port.clone();
    port.tell(Input::CutRequested(ONE)).unwrap();
    port.tell(Input::CutTaken(ONE)).unwrap();
    port.stand();
    let (attended, (done, left)) = (port.clone(), channel());
    std::thread::spawn(move || {
        attended.complete_cut();
        done.send(()).unwrap();
    });
    assert!(left.try_recv().is_err(), "the other's marker is missing");
    port.turn();
    let limit = Duration::from_secs(10);
    left.recv_timeout(limit).expect("it takes what is for the I/O thread");
    assert!(port.lock().cut.is_collecting());
    port.turn();
    // Whatever comes now is seen by who waits.
    vms[1].port.write(&frame(0, 7, 100)).unwrap();
    port.0.poll.wait(limit);
    port.turn();
    assert_eq!(vms[0].got(), [7]);
}

#[test]
fn the_pause_of_a_cut_is_no_time_in_which_a_guest_takes_nothing() {
    let vms = network(&[1, 1]);
    let (sender, receiver) = (&vms[0].port, &vms[1]);
    sender.write(&frame(1, 0, 100)).unwrap();
    receiver.port.turn();
    assert_eq!(receiver.got(), [0]);
    for number in 1.. {
        if receiver.port.lock().cut.pending_bytes() >= AHEAD_BYTES {
            break;
        }
        sender.write(&frame(1, number, 60_000)).unwrap();
        receiver.port.turn();
        sender.turn();
    }
    // It is far ahead, and somebody will look whether the guest takes frames.
    receiver.port.tell(Input::CutRequested(ONE)).unwrap();
    receiver.port.tell(Input::CutTaken(ONE)).unwrap();
    receiver.port.0.poll.ready();
    receiver.port.0.poll.wait(Duration::from_secs(5));
    receiver.port.turn();
    assert!(receiver.port.lock().guest.takes(), "it could take none while its machine stood still");
}
