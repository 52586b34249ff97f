//! Text that is written at compile time.

/// So many bytes at most; the rest are zeros.
const CAPACITY: usize = 32 * 1024;

/// See the module.
pub(crate) struct Text {
    pub(crate) bytes: [u8; CAPACITY],
    length: usize,
}

impl Text {
    pub(crate) const fn new() -> Self {
        Self { bytes: [0; CAPACITY], length: 0 }
    }

    /// Adds `text`.
    pub(crate) const fn put(mut self, text: &str) -> Self {
        let mut at = 0;
        while at < text.len() {
            self.bytes[self.length] = text.as_bytes()[at];
            self.length += 1;
            at += 1;
        }
        self
    }

    /// Adds a space and `number` in decimal.
    pub(crate) const fn number(mut self, number: usize) -> Self {
        self = self.put(" ");
        let mut unit = 1;
        while number / unit >= 10 {
            unit *= 10;
        }
        while unit > 0 {
            self.bytes[self.length] = b'0' + (number / unit % 10) as u8;
            self.length += 1;
            unit /= 10;
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_decimal() {
        let text = Text::new().put("a").number(0).number(7).number(10).number(90_210).put("b");
        assert_eq!(&text.bytes[..text.length], b"a 0 7 10 90210b");
    }
}
