//! What goes over a link.

/// What has gone over a link, both ways. Frames only, with their virtio-net headers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkCounters {
    /// Frames that have gone out.
    pub sent_frames: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Frames that have come, whatever became of them.
    pub received_frames: u64,
    /// Their bytes.
    pub received_bytes: u64,
}

impl LinkCounters {
    pub(super) fn sent(&mut self, frame: &[u8]) {
        self.sent_frames += 1;
        self.sent_bytes += frame.len() as u64;
    }

    pub(super) fn received(&mut self, frame: &[u8]) {
        self.received_frames += 1;
        self.received_bytes += frame.len() as u64;
    }
}
