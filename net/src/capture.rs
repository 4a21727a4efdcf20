//! What goes over a node's links, as a file that tcpdump and Wireshark read (pcap, LINKTYPE_ETHERNET):
//!
//! ```text
//! file    magic 0xa1b23c4d (nanoseconds), version 2.4, 8 bytes 0, most bytes of a frame, 1: Ethernet; little-endian
//! frame   seconds, nanoseconds, bytes here, bytes of the frame (4 bytes each), then the frame from its Ethernet header
//! ```
//!
//! The virtio-net header is left out: a frame that travels unsegmented, or without its checksum, stands there as it is,
//! as in a capture on a host's own TAP.
//!
//! Invariants: the links never wait for the file. What it has no time for is counted; a file that cannot be written, or
//! is [`BYTES_MAX`] long, ends the capture and nothing else.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::link::{FRAME_BYTES_MAX, HEADER_BYTES};
use crate::packet::Node;
use crate::port::Frame;

/// Most bytes in a file.
pub const BYTES_MAX: u64 = 1 << 30;
/// Frames that may wait for the file.
const WAITING_MAX: usize = 1024;
const FILE_HEADER_BYTES: usize = 24;
const FRAME_HEADER_BYTES: usize = 16;
/// Most bytes of a frame.
const SNAP_BYTES: u32 = (FRAME_BYTES_MAX - HEADER_BYTES) as u32;
const ETHERNET: u32 = 1;

/// A capture that is being made; it ends when this goes.
#[derive(Debug)]
pub struct Capture {
    /// The other end of the link; else all are captured.
    peer: Option<Node>,
    frames: SyncSender<(SystemTime, Frame)>,
    missed: u64,
}

/// How a capture ended.
#[derive(Debug, Default)]
pub struct Captured {
    /// Frames in the file.
    pub frames: u64,
    /// Bytes of it.
    pub bytes: u64,
    /// Why it ended before it was to.
    pub error: Option<io::Error>,
}

impl Capture {
    /// Begins to write to `file`, on a thread, which calls `ended` at the end.
    ///
    /// # Errors
    /// If the system has no thread for it.
    pub fn start(file: File, peer: Option<Node>, ended: impl FnOnce(Captured) + Send + 'static) -> io::Result<Capture> {
        let (frames, waiting) = sync_channel(WAITING_MAX);
        let run = move || {
            let captured = write_all(BufWriter::new(file), &waiting);
            drop(waiting);
            ended(captured);
        };
        thread::Builder::new().name("capture".into()).spawn(run)?;
        Ok(Capture { peer, frames, missed: 0 })
    }

    /// A frame has come from `peer` or gone to it. `false`: the capture has ended.
    pub(crate) fn take(&mut self, peer: Node, frame: &Frame) -> bool {
        if self.peer.is_some_and(|only| only != peer) {
            return true;
        }
        match self.frames.try_send((SystemTime::now(), frame.clone())) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                self.missed += 1;
                true
            }
            Err(TrySendError::Disconnected(_)) => false,
        }
    }

    /// Frames that the file had no time for.
    pub fn missed(&self) -> u64 {
        self.missed
    }
}

fn write_all(mut file: impl Write, frames: &Receiver<(SystemTime, Frame)>) -> Captured {
    let mut captured = Captured::default();
    captured.error = write(&mut file, frames, &mut captured).err();
    captured
}

fn write(file: &mut impl Write, frames: &Receiver<(SystemTime, Frame)>, captured: &mut Captured) -> io::Result<()> {
    file.write_all(&file_header())?;
    captured.bytes = FILE_HEADER_BYTES as u64;
    loop {
        let (time, frame) = match frames.try_recv() {
            Ok(next) => next,
            Err(TryRecvError::Disconnected) => return file.flush(),
            Err(TryRecvError::Empty) => {
                // Whoever reads the file meanwhile sees all that has come.
                file.flush()?;
                match frames.recv() {
                    Ok(next) => next,
                    Err(_) => return Ok(()),
                }
            }
        };
        let frame = frame.get(HEADER_BYTES..).unwrap_or_default();
        captured.bytes += (FRAME_HEADER_BYTES + frame.len()) as u64;
        if captured.bytes > BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        file.write_all(&frame_header(time, frame.len() as u32))?;
        file.write_all(frame)?;
        captured.frames += 1;
    }
}

fn file_header() -> [u8; FILE_HEADER_BYTES] {
    let mut header = [0; FILE_HEADER_BYTES];
    header[..4].copy_from_slice(&0xa1b2_3c4d_u32.to_le_bytes());
    header[4..8].copy_from_slice(&[2, 0, 4, 0]);
    header[16..20].copy_from_slice(&SNAP_BYTES.to_le_bytes());
    header[20..].copy_from_slice(&ETHERNET.to_le_bytes());
    header
}

fn frame_header(time: SystemTime, bytes: u32) -> [u8; FRAME_HEADER_BYTES] {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let mut header = [0; FRAME_HEADER_BYTES];
    for (place, word) in header.chunks_exact_mut(4).zip([since.as_secs() as u32, since.subsec_nanos(), bytes, bytes]) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    header
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::sync::mpsc::channel;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    fn frame(number: u8) -> Frame {
        [vec![0xff; HEADER_BYTES], vec![number; 60]].concat().into()
    }

    #[test]
    fn the_bytes_are_these() {
        let (sender, frames) = sync_channel(2);
        sender.send((UNIX_EPOCH + Duration::new(3, 4), frame(7))).unwrap();
        drop(sender);
        let mut file = Vec::new();
        let captured = write_all(&mut file, &frames);
        assert_eq!((captured.frames, captured.bytes, captured.error.is_none()), (1, 24 + 16 + 60, true));
        let head = b"\x4d\x3c\xb2\xa1\x02\0\x04\0\0\0\0\0\0\0\0\0\x16\0\x01\0\x01\0\0\0";
        let words = b"\x03\0\0\0\x04\0\0\0\x3c\0\0\0\x3c\0\0\0";
        assert_eq!(file, [&head[..], words, &[7; 60]].concat());
    }

    #[test]
    fn of_one_link_only_what_goes_over_it_is_captured() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (sender, ended) = channel();
        let mut capture =
            Capture::start(file.reopen().unwrap(), Some(Node(1)), move |end| sender.send(end).unwrap()).unwrap();
        assert!(capture.take(Node(1), &frame(1)) && capture.take(Node(2), &frame(2)));
        drop(capture);
        assert_eq!(ended.recv_timeout(LIMIT).unwrap().frames, 1);
        assert_eq!(std::fs::read(file).unwrap().len(), 24 + 16 + 60);
    }

    #[test]
    fn a_file_that_takes_nothing_ends_the_capture_and_nobody_waits() {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let (sender, ended) = channel();
        let mut capture = Capture::start(full, None, move |end| sender.send(end).unwrap()).unwrap();
        let error = ended.recv_timeout(LIMIT).unwrap().error.unwrap();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(!capture.take(Node(0), &frame(0)), "the thread has gone");
    }

    #[test]
    fn a_slow_file_costs_frames_of_the_capture_only() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let (sender, ended) = channel();
        let mut capture = Capture::start(writer.into(), None, move |end| sender.send(end).unwrap()).unwrap();
        (0..5000).for_each(|_| assert!(capture.take(Node(0), &frame(1))));
        let missed = capture.missed();
        assert!(missed > 0);
        drop(capture);
        let read = thread::spawn(move || io::copy(&mut File::from(reader), &mut io::sink()).unwrap());
        let captured = ended.recv_timeout(LIMIT).unwrap();
        assert_eq!(captured.frames + missed, 5000);
        assert_eq!(read.join().unwrap(), captured.bytes);
    }
}
