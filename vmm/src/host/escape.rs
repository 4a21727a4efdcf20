//! The way out of a guest that has the terminal: Ctrl-A, then a letter, as in `screen` and QEMU.

/// Ctrl-A.
const PREFIX: u8 = 0x01;

/// What becomes of a typed byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Typed {
    /// It is the guest's.
    Guest(u8),
    /// Ctrl-A x: leave.
    Leave,
    /// It was part of an escape.
    Nothing,
}

/// The state between two typed bytes.
#[derive(Debug, Default)]
pub struct Escape {
    prefixed: bool,
}

impl Escape {
    /// Takes the next typed byte.
    pub fn feed(&mut self, byte: u8) -> Typed {
        match (std::mem::take(&mut self.prefixed), byte) {
            (false, PREFIX) => {
                self.prefixed = true;
                Typed::Nothing
            }
            (true, b'x' | b'X') => Typed::Leave,
            (true, PREFIX) | (false, _) => Typed::Guest(byte),
            (true, _) => Typed::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_twice_is_once_for_the_guest() {
        let mut escape = Escape::default();
        let typed: Vec<_> = b"a\x01\x01b\x01zc\x01x".iter().map(|byte| escape.feed(*byte)).collect();
        use Typed::*;
        let expected = [Guest(b'a'), Nothing, Guest(1), Guest(b'b'), Nothing, Nothing, Guest(b'c'), Nothing, Leave];
        assert_eq!(typed, expected);
    }
}
