//! Writing to who may not read: standard output, standard error, a FIFO.

use std::{
    io::{self, ErrorKind, Write},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

/// How long somebody who reads is waited for. A pager that shows a page, or a terminal that has been stopped, does not
/// read; the guest and the VMM go on.
const PATIENCE: Duration = Duration::from_secs(1);
/// What a pipe takes at once if it takes anything (`PIPE_BUF`, pipe(7)).
const AT_ONCE: usize = 4096;

/// An output that blocks for at most a second, once: what nobody has read by then is lost, and so is what comes after,
/// until somebody reads again.
#[derive(Debug)]
pub struct Patient<W> {
    output: W,
    /// Nobody read when it was waited for last.
    stalled: bool,
}

impl<W> Patient<W> {
    /// Writes to `output` from now on.
    pub const fn new(output: W) -> Self {
        Patient { output, stalled: false }
    }
}

impl<W: AsFd> Patient<W> {
    /// Whether it takes something, now or soon.
    fn takes(&mut self) -> io::Result<bool> {
        let until = Instant::now() + if self.stalled { Duration::ZERO } else { PATIENCE };
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let mut output = [PollFd::new(self.output.as_fd(), PollFlags::POLLOUT)];
            match poll(&mut output, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO)) {
                // A vCPU's thread is kicked to stand still; the byte that it writes is written first.
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
                Ok(ready) => {
                    self.stalled = ready == 0;
                    return Ok(ready > 0);
                }
            }
        }
    }
}

impl<W: AsFd + Write> Write for Patient<W> {
    /// # Errors
    /// As of write(2), when it is over with the output; `WouldBlock` if nobody reads.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.takes()? {
            return Err(ErrorKind::WouldBlock.into());
        }
        self.output.write(&bytes[..bytes.len().min(AT_ONCE)])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read, iter};

    use super::*;

    #[test]
    fn who_does_not_read_is_waited_for_once() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut patient = Patient::new(writer);
        let line = [b'x'; 1000];
        let taken: usize = iter::from_fn(|| patient.write(&line).ok()).sum();
        assert!(taken >= AT_ONCE, "it took what the pipe has room for");
        assert!(patient.stalled);

        let mut read = vec![0; taken];
        reader.read_exact(&mut read).unwrap();
        patient.write_all(b"again").unwrap();
        assert!(!patient.stalled);
        reader.read_exact(&mut read[..5]).unwrap();
        assert_eq!(&read[..5], b"again");
    }

    #[test]
    fn who_has_gone_is_not_waited_for() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let mut patient = Patient::new(writer);
        assert_eq!(patient.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
        assert!(!patient.stalled);
    }
}
