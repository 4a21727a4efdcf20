//! The I/O thread: one event loop for every device, which a checkpoint can park between two events.

use std::{
    io,
    os::fd::AsRawFd,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use ckvmm_net::Port;
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::error::{Error, Result};

/// Something whose events the I/O thread handles.
pub type Subscriber = Box<dyn MutEventSubscriber + Send>;

/// The thread. It is born parked.
#[derive(Debug)]
pub struct IoThread {
    gate: Arc<Gate>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Gate {
    /// Read between two events without the lock.
    wanted: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
    wake: EventFd,
}

#[derive(Debug, Default)]
struct State {
    park: bool,
    parked: bool,
    quit: bool,
}

impl IoThread {
    /// Starts the thread with `subscribers`, and the place of the VM's card in its network, if it has one.
    ///
    /// # Errors
    /// If the thread or its epoll cannot be had.
    pub fn start(subscribers: Vec<Subscriber>, port: Option<Port>) -> Result<Self> {
        let wake = EventFd::new(EFD_NONBLOCK).map_err(Error::os("creating an eventfd"))?;
        let gate = Arc::new(Gate {
            wanted: AtomicBool::new(true),
            state: Mutex::new(State { park: true, ..State::default() }),
            changed: Condvar::new(),
            wake,
        });
        let mut manager = EventManager::<Subscriber>::new()
            .map_err(|error| Error::os("creating the event loop")(io::Error::other(error)))?;
        manager.add_subscriber(Box::new(Wake(Arc::clone(&gate))));
        for subscriber in subscribers {
            manager.add_subscriber(subscriber);
        }
        if let Some(port) = port.clone() {
            manager.add_subscriber(Box::new(PortEvents(port)));
        }
        let at_gate = Arc::clone(&gate);
        let thread = thread::Builder::new()
            .name("io".into())
            .spawn(move || run(manager, &at_gate, port.as_ref()))
            .map_err(Error::os("starting the I/O thread"))?;
        Ok(IoThread { gate, thread: Some(thread) })
    }

    /// Lets the thread handle events.
    pub fn run(&self) {
        let mut state = self.gate.lock();
        state.park = false;
        self.gate.wanted.store(false, Ordering::SeqCst);
        self.gate.changed.notify_all();
    }

    /// Stops the thread between two events, and waits until it has.
    pub fn park(&self) {
        let mut state = self.gate.lock();
        state.park = true;
        self.gate.wake_up();
        while !state.parked && !self.ended() {
            state = self.gate.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for IoThread {
    fn drop(&mut self) {
        self.gate.lock().quit = true;
        self.gate.wake_up();
        self.gate.changed.notify_all();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the I/O thread panicked");
        }
    }
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake_up(&self) {
        self.wanted.store(true, Ordering::SeqCst);
        // A full counter wakes as well.
        drop(self.wake.write(1));
    }

    /// Waits while the thread is to be parked; false to quit.
    fn pass(&self) -> bool {
        let mut state = self.lock();
        state.parked = true;
        self.changed.notify_all();
        while state.park && !state.quit {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.parked = false;
        !state.quit
    }
}

fn run(mut manager: EventManager<Subscriber>, gate: &Gate, port: Option<&Port>) {
    // It is born parked, even where it is to run by the time that it gets here.
    let mut parks = true;
    loop {
        if parks {
            if !gate.pass() {
                return;
            }
            // Of what has come meanwhile somebody else may have been told.
            port.into_iter().for_each(Port::turn);
        }
        if let Err(error) = manager.run() {
            tracing::error!(%error, "the event loop failed");
        }
        parks = gate.wanted.load(Ordering::SeqCst);
    }
}

/// Takes the event loop out of its wait.
struct Wake(Arc<Gate>);

impl MutEventSubscriber for Wake {
    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(&self.0.wake, EventSet::IN)) {
            tracing::error!(%error, fd = self.0.wake.as_raw_fd(), "cannot watch the event loop's own eventfd");
        }
    }

    fn process(&mut self, _: Events, _: &mut EventOps) {
        // Only its wake-up matters.
        drop(self.0.wake.read());
    }
}

/// Moves what can be moved between a port and the links of its network.
struct PortEvents(Port);

impl MutEventSubscriber for PortEvents {
    fn init(&mut self, ops: &mut EventOps) {
        // The port is there before the thread, and is asked each time the thread is free.
        if let Err(error) = ops.add(Events::new_raw(self.0.poll_fd(), EventSet::IN)) {
            tracing::error!(%error, "cannot watch the links of the network");
        }
    }

    fn process(&mut self, _: Events, _: &mut EventOps) {
        self.0.turn();
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::sync::{atomic::AtomicUsize, mpsc};
    use std::time::Duration;

    use ckvmm_net::{
        Colour, Incarnation, Node, SeqPacket,
        cut::{Input, Limits, Setup},
        port::PortConfig,
    };
    use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet as Flags};

    use super::*;
    use crate::network::channel;

    /// How long a test waits for a thread.
    const LIMIT: Duration = Duration::from_secs(60);

    struct Counter(EventFd, Arc<AtomicUsize>);

    impl MutEventSubscriber for Counter {
        fn init(&mut self, ops: &mut EventOps) {
            ops.add(Events::new(&self.0, EventSet::IN)).unwrap();
        }

        fn process(&mut self, _: Events, _: &mut EventOps) {
            self.0.read().unwrap();
            self.1.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_parked_thread_handles_nothing_and_loses_nothing() {
        let (event, count) = (EventFd::new(EFD_NONBLOCK).unwrap(), Arc::new(AtomicUsize::new(0)));
        let counter = Counter(event.try_clone().unwrap(), Arc::clone(&count));
        let thread = IoThread::start(vec![Box::new(counter)], None).unwrap();
        for round in 0..200 {
            thread.park();
            let before = count.load(Ordering::SeqCst);
            event.write(1).unwrap();
            assert_eq!(count.load(Ordering::SeqCst), before, "round {round}");
            thread.run();
            while count.load(Ordering::SeqCst) == before {
                thread::yield_now();
            }
        }
    }

    /// A card's place whose machine stands still in a cut, for which the other's marker is missing; and that other's end.
    fn standing() -> (Port, OwnedFd) {
        let (ours, theirs) = channel::pair().unwrap();
        let setup = Setup { me: Node(0), nodes: 2, incarnation: Incarnation(0), limits: Limits::default() };
        let (macs, links) = (vec![[2; 6], [4; 6]], vec![(Node(1), Box::new(SeqPacket::new(ours)) as _)]);
        let config = PortConfig { name: "eth0".into(), setup, macs, links, preload: Vec::new(), offloads: false };
        let port = Port::open(config, drop).unwrap();
        port.tell(Input::CutRequested(Colour(1))).unwrap();
        port.tell(Input::CutTaken(Colour(1))).unwrap();
        port.stand();
        (port, theirs)
    }

    /// Somebody sees to the cut, and says when that is left to the thread.
    fn attend(port: &Port) -> mpsc::Receiver<()> {
        let (attended, (done, left)) = (port.clone(), mpsc::channel());
        thread::spawn(move || {
            attended.complete_cut();
            // A test that has failed does not listen.
            let _ = done.send(());
        });
        left
    }

    /// Its events are taken by who sees to a cut while the thread is parked.
    #[test]
    fn a_thread_that_goes_on_looks_at_the_links_whoever_was_told_of_them() {
        let (port, theirs) = standing();
        let thread = IoThread::start(Vec::new(), Some(port.clone())).unwrap();
        let left = attend(&port);
        let (look, mut events) = (Epoll::new().unwrap(), [EpollEvent::default()]);
        look.ctl(ControlOperation::Add, port.poll_fd(), EpollEvent::new(Flags::IN, 0)).unwrap();
        while look.wait(0, &mut events).unwrap() > 0 {
            thread::yield_now();
        }
        assert!(left.try_recv().is_err(), "the other's marker is missing");
        thread.run();
        left.recv_timeout(LIMIT).expect("it takes what is for the thread that runs");
        drop(theirs);
    }

    #[test]
    fn a_thread_that_comes_when_it_is_to_run_already_looks_at_the_links_too() {
        let (port, theirs) = standing();
        let wake = EventFd::new(EFD_NONBLOCK).unwrap();
        let (wanted, state, changed) = (AtomicBool::new(false), Mutex::default(), Condvar::new());
        let gate = Arc::new(Gate { wanted, state, changed, wake });
        let mut manager = EventManager::<Subscriber>::new().unwrap();
        manager.add_subscriber(Box::new(Wake(Arc::clone(&gate))));
        let (at_gate, of_thread) = (Arc::clone(&gate), port.clone());
        let thread = thread::spawn(move || run(manager, &at_gate, Some(&of_thread)));
        attend(&port).recv_timeout(LIMIT).expect("it has looked at once");
        gate.lock().quit = true;
        gate.wake_up();
        thread.join().unwrap();
        drop(theirs);
    }
}
