//! A VMM as a member of a network: its place, its port, and its part in the cut that is being made.
//!
//! Invariant: at most one cut is open here, and its log goes to whoever finishes its image; if that comes to nothing,
//! the other end of the way is closed, so nobody waits for a log that does not come.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use ckvmm_net::capture::Captured;
use ckvmm_net::cut::{Input, Limits, Setup, Why};
use ckvmm_net::port::{self, Frame, PortConfig};
use ckvmm_net::{Capture, Colour, Incarnation, Node, Port, SeqPacket, Transport, log};
use ckvmm_snapshot::Image;

use super::channel::{self, Channel};
use super::message::{FromMember, Part, Place, SoFar, ToMember};
use crate::cli::ExitStatus;
use crate::config::Id;
use crate::error::{Error, Result};
use crate::host::terminal::say;

/// How long a guest that is off waits for its last frames to go out.
const PATIENCE: Duration = Duration::from_secs(5);

/// The file of a VM's state directory that says that its guest is off, or has crashed, and, when its VM has ended, with
/// which status.
pub const LEFT: &str = "left";

/// What was under way at a cut, in order.
pub type Log = Vec<(Node, Frame)>;

/// What comes from the network to the main loop.
#[derive(Debug)]
pub enum Event {
    /// The supervisor has said something.
    Told(ToMember),
    /// The port has.
    Port(port::Event),
    /// The supervisor is gone.
    Alone,
    /// Another one has taken over.
    Supervised(Arc<Channel>),
}

/// A place in a network, with links, that nobody has taken yet.
#[derive(Debug)]
pub struct Invitation {
    channel: Channel,
    place: Place,
    links: Vec<OwnedFd>,
}

/// A member.
pub struct Member {
    channel: Arc<Channel>,
    left: PathBuf,
    /// It was told to go.
    pub has_gone: bool,
    /// Its place.
    pub place: Place,
    /// Its card's link.
    pub port: Port,
    open: Option<Open>,
    /// The cut of which the supervisor is to hear.
    owed: Option<Colour>,
    /// A cut to be taken when the one before it has gone, and until when.
    pub next: Option<(Colour, Instant)>,
    part: Part,
}

struct Open {
    cut: Colour,
    /// To whoever finishes the image.
    log: mpsc::Sender<Log>,
}

impl Invitation {
    /// What the supervisor has to say first, over standard input.
    ///
    /// # Errors
    /// There is no supervisor.
    pub fn receive() -> Result<Invitation> {
        let nobody = |source| Error::Os { what: "hearing from the network's supervisor", source };
        let channel = Channel::of_member().map_err(nobody)?;
        match channel.receive().map_err(nobody)? {
            Some((ToMember::Place(place), links)) if place.peers.len() == links.len() => {
                Ok(Invitation { channel, place: *place, links })
            }
            _ => Err(nobody(std::io::ErrorKind::InvalidData.into())),
        }
    }

    /// Takes the place. Frames that were under way at the cut of `image` come first. What happens goes to `events`;
    /// `so_far` says how far a cut is, also while the main loop is at work on it.
    ///
    /// # Errors
    /// The image's frames cannot be read, or a link is gone.
    pub fn accept(
        self,
        image: Option<&Image>,
        state: &Path,
        events: impl Fn(Event) + Clone + Send + 'static,
        so_far: impl Fn() -> Option<SoFar> + Send + 'static,
    ) -> Result<Member> {
        let Invitation { channel, place, links } = self;
        let nodes = place.macs.len() as u16;
        let logged = image.map(|image| image.network(&place.nic)).transpose()?.flatten();
        let preload = logged.map(|bytes| log::decode(&bytes, nodes)).transpose()?.unwrap_or_default();
        let incarnation = Incarnation(place.incarnation);
        let config = PortConfig {
            name: place.nic.to_string(),
            setup: Setup { me: Node(place.me), nodes, incarnation, limits: Limits::default() },
            macs: place.macs.clone(),
            links: place.peers.iter().map(|node| Node(*node)).zip(links.into_iter().map(on_this_host)).collect(),
            preload,
            offloads: place.offloads,
        };
        let say = events.clone();
        let port = Port::open(config, move |event| say(Event::Port(event)))?;
        let channel = Arc::new(channel);
        let left = state.join(LEFT);
        let _ = fs::remove_file(&left);
        let door = channel::listen(state).map_err(Error::os("listening for supervisors"))?;
        let (first, links) = (Arc::clone(&channel), port.clone());
        let listen = move || {
            let mut channel = first;
            loop {
                while let Ok(Some((message, descriptors))) = channel.receive() {
                    match message {
                        // Of no matter to the machine.
                        ToMember::Fault(peer, fault) => links.set_fault(Node(peer), fault.into()),
                        ToMember::HowFar => _ = channel.send(&FromMember::SoFar(so_far()), &[]),
                        ToMember::Capture(peer) => capture(&links, peer.map(Node), descriptors.into_iter().next()),
                        message => events(Event::Told(message)),
                    }
                }
                events(Event::Alone);
                let Ok(next) = Channel::accept(&door) else { return };
                channel = Arc::new(next);
                events(Event::Supervised(Arc::clone(&channel)));
            }
        };
        thread::Builder::new().name("network".into()).spawn(listen).map_err(Error::os("starting a thread"))?;
        let (open, owed, next) = (None, None, None);
        Ok(Member { channel, left, place, port, has_gone: false, open, owed, next, part: Part::default() })
    }
}

impl Member {
    /// Says something to the supervisor. It may be gone: the VM runs on.
    pub fn say(&self, message: &FromMember) {
        let _ = self.channel.send(message, &[]);
    }

    /// Hears another supervisor from now on, which must know that this VM is there.
    pub fn supervised(&mut self, channel: Arc<Channel>) {
        self.channel = channel;
        self.say(&FromMember::Ready);
    }

    /// Tells the cut something.
    pub fn tell(&self, input: Input<Frame>) {
        if let Err(error) = self.port.tell(input) {
            say(&error.to_string());
        }
    }

    /// A cut is taken; its log will come over what this returns.
    pub fn opened(&mut self, cut: Colour) -> (Id, mpsc::Receiver<Log>) {
        let (log, receiver) = mpsc::channel();
        self.open = Some(Open { cut, log });
        self.owed = Some(cut);
        (self.place.nic.clone(), receiver)
    }

    /// All that was under way is known.
    pub fn closed(&mut self, cut: Colour, log: Log) {
        if let Some(open) = self.open.as_ref().filter(|open| open.cut == cut) {
            self.part.logged_frames = log.len() as u64;
            // One that has been given up needs no log.
            drop(open.log.send(log));
        }
    }

    /// The image of the cut is not wanted; `true` if somebody is at work on it.
    pub fn discard(&mut self, cut: Colour) -> bool {
        self.owed.take_if(|owed| *owed == cut);
        self.open.take_if(|open| open.cut == cut).is_some()
    }

    /// The image of the open cut is made, or not.
    pub fn finished(&mut self, made: std::result::Result<Part, String>) {
        let Some(Open { cut, log: _ }) = self.open.take() else { return };
        match made {
            Ok(part) => {
                self.part = Part { logged_frames: self.part.logged_frames, ..part };
                self.tell(Input::ImageDurable(cut));
            }
            Err(why) => self.tell(Input::CutFailed(cut, why)),
        }
    }

    /// Reports that this VM's part of the cut is whole.
    pub fn prepared(&mut self, cut: Colour) {
        self.owed.take_if(|owed| *owed == cut);
        let (held_packets, dropped_frames) = (self.port.counters().held, self.port.dropped_before_cut());
        let part = Part { held_packets, dropped_frames, waits: self.port.waits(), ..self.part };
        self.say(&FromMember::Prepared(cut.0, part));
    }

    /// Reports that this VM has no part in the cut to give.
    pub fn failed(&self, cut: Colour, why: &Why) {
        self.say(&FromMember::Failed(cut.0, why.to_string()));
    }

    /// Whether the supervisor is still to hear of a cut that was taken.
    pub fn is_cutting(&self) -> bool {
        self.owed.is_some()
    }

    /// The machine stands still, and its I/O thread with it: somebody else sees to the links of the open cut.
    pub fn attend(&self) {
        let Some(Open { cut, .. }) = self.open else { return };
        let port = self.port.clone();
        // Before anybody can let it run again.
        port.stand();
        let attend = move || port.complete_cut();
        if let Err(error) = thread::Builder::new().name("links".into()).spawn(attend) {
            self.tell(Input::CutFailed(cut, format!("starting a thread: {error}")));
        }
    }

    /// The guest is off: what waits goes out, and the others' guests go on without it.
    pub fn close_links(&self) {
        self.port.leave(PATIENCE);
    }

    /// The guest has crashed: it has not left, and its VM counts as lost. How that ends is to be written down.
    pub fn crash(self) -> LeftNote {
        LeftNote(self.left)
    }

    /// The VM has no part in the network any more; how it ends is to be written down.
    pub fn leave(self) -> LeftNote {
        // For a supervisor that takes over; without it this VM counts as lost.
        let _ = fs::write(&self.left, "");
        self.say(&FromMember::Left(self.port.colour().0));
        LeftNote(self.left)
    }

    /// Where this VM's part of a cut goes.
    pub fn directory(&self, cut: Colour) -> impl AsRef<Path> {
        self.place.directory(cut)
    }
}

/// Says how a VM has left its network, or been lost to it, to whoever takes over.
#[derive(Debug)]
pub struct LeftNote(PathBuf);

impl LeftNote {
    /// With this the VM ends.
    pub fn ends_with(&self, status: ExitStatus) {
        let _ = fs::write(&self.0, status.code().to_string());
    }

    /// Whether the VM with its state in `dir` has left. One whose guest has crashed has not: the network is not whole
    /// without it.
    pub fn has_left(dir: &Path) -> bool {
        Self::read(dir).is_some_and(|status| status != ExitStatus::GuestCrashed.code())
    }

    /// The status with which the VM with its state in `dir` has ended after it left or its guest crashed; `None`: neither.
    /// One that left and was then killed has failed.
    pub fn read(dir: &Path) -> Option<u8> {
        let text = fs::read_to_string(dir.join(LEFT)).ok()?;
        Some(text.parse().unwrap_or(ExitStatus::Failed.code()))
    }
}

fn on_this_host(socket: OwnedFd) -> Box<dyn Transport> {
    Box::new(SeqPacket::new(socket))
}

/// Captures to `file`, or ends that.
fn capture(port: &Port, peer: Option<Node>, file: Option<OwnedFd>) {
    let ended = |captured: Captured| {
        if let Some(error) = captured.error {
            say(&format!(
                "capture: {error}, after {} frames; the guest goes on; make room, and begin another",
                captured.frames
            ));
        }
    };
    match file.map(|file| Capture::start(File::from(file), peer, ended)).transpose() {
        Ok(capture) => port.set_capture(capture),
        Err(error) => say(&format!("capture: {error}; the guest goes on; end other processes, and begin another")),
    }
}
