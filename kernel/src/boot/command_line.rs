//! The kernel's command line: words separated by blanks, `name=value` or a bare name.

/// The words that the kernel and its self-tests know how to find.
#[derive(Clone, Copy, Debug)]
pub struct CommandLine<'a>(&'a str);

impl<'a> CommandLine<'a> {
    /// Wraps the loader's string.
    pub const fn new(line: &'a str) -> Self {
        Self(line)
    }

    /// The value of the last `name=value`: a later word overrides an earlier one.
    pub fn value(&self, name: &str) -> Option<&'a str> {
        self.0
            .split_ascii_whitespace()
            .rev()
            .find_map(|word| word.split_once('=').filter(|(key, _)| *key == name))
            .map(|(_, value)| value)
    }

    /// The value as a decimal or `0x` hexadecimal number; `Err` holds the text that isn't one.
    pub fn number(&self, name: &str) -> Option<Result<u64, &'a str>> {
        let text = self.value(name)?;
        let parsed = match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => text.parse(),
        };
        Some(parsed.map_err(|_| text))
    }

    /// Whether the bare word is there.
    pub fn has(&self, name: &str) -> bool {
        self.0.split_ascii_whitespace().any(|word| word == name)
    }

    /// The whole line.
    pub fn as_str(&self) -> &'a str {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_value_wins_and_names_match_whole() {
        let line = CommandLine::new("seed=1 noseed=9  seed=0x2a quiet only=irql::");
        assert_eq!(line.number("seed"), Some(Ok(42)));
        assert_eq!(line.value("only"), Some("irql::"));
        assert!(line.has("quiet") && !line.has("qui"));
        assert_eq!(line.number("eed"), None);
    }

    #[test]
    fn what_is_not_a_number_is_handed_back() {
        assert_eq!(CommandLine::new("seed=x").number("seed"), Some(Err("x")));
        assert_eq!(CommandLine::new("seed=").number("seed"), Some(Err("")));
        assert_eq!(
            CommandLine::new("seed=18446744073709551616").number("seed"),
            Some(Err("18446744073709551616"))
        );
    }
}
