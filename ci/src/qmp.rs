//! QEMU's machine protocol: a JSON object a line, over one end of a socket pair.
//!
//! The other end is QEMU's from its birth, so there is no socket file to name, race for or leave behind.
//! Nothing is sent before `negotiate`: a run under the instruction counter is not touched unless it hangs.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value, json};

/// How long QEMU may take to answer: it does so from its main loop, which a busy host can delay.
const PATIENCE: Duration = Duration::from_secs(5);

/// A connection to one QEMU.
pub(crate) struct Qmp {
    stream: UnixStream,
    received: Vec<u8>,
    /// Of the latest request: an answer carries its request's number.
    id: u64,
    negotiated: bool,
    events: Vec<Value>,
}

impl Qmp {
    /// Wraps the harness's end of the pair.
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self { stream, received: Vec::new(), id: 0, negotiated: false, events: Vec::new() }
    }

    /// Asks QEMU to leave its greeting state, after which it takes commands and sends events.
    ///
    /// Waits for nothing: QEMU takes requests in order, and one that is still starting up answers later.
    pub(crate) fn negotiate(&mut self) -> Result<()> {
        if !self.negotiated {
            self.send("qmp_capabilities", &json!({}))?;
            self.negotiated = true;
        }
        Ok(())
    }

    /// Executes a command and waits for what it returns. Events that arrive meanwhile are kept.
    pub(crate) fn command(&mut self, name: &str, arguments: &Value) -> Result<Value> {
        self.send(name, arguments)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let Some(message) = self.receive(deadline)? else {
                bail!("QEMU did not answer {name} within {} s", PATIENCE.as_secs());
            };
            if message["id"] == self.id {
                if let Some(error) = message.get("error") {
                    bail!("QEMU refused {name}: {}", error["desc"].as_str().unwrap_or("no reason given"));
                }
                return Ok(message["return"].clone());
            }
            self.keep(message);
        }
    }

    /// Sends a command and leaves its answer unread.
    pub(crate) fn send(&mut self, name: &str, arguments: &Value) -> Result<()> {
        self.id += 1;
        let request = json!({ "execute": name, "arguments": arguments, "id": self.id });
        self.stream.set_write_timeout(Some(PATIENCE))?;
        writeln!(self.stream, "{request}").with_context(|| format!("QEMU takes no command {name}"))
    }

    fn keep(&mut self, message: Value) {
        if message.get("event").is_some() {
            self.events.push(message);
        }
    }

    /// A command of the human monitor, looking through the eyes of one processor.
    pub(crate) fn monitor(&mut self, processor: u64, line: &str) -> Result<String> {
        let arguments = json!({ "command-line": line, "cpu-index": processor });
        let value = self.command("human-monitor-command", &arguments)?;
        value.as_str().map(str::to_owned).ok_or_else(|| anyhow!("QEMU answered {line} with no text"))
    }

    /// The next event named `name` that has already arrived; waits for nothing.
    pub(crate) fn event(&mut self, name: &str) -> Option<Value> {
        // A connection that is broken by now shows in QEMU's end, which is somebody else's to notice.
        let _ = self.stream.set_nonblocking(true);
        while let Ok(Some(message)) = self.receive(Instant::now()) {
            self.keep(message);
        }
        let _ = self.stream.set_nonblocking(false);
        let at = self.events.iter().position(|event| event["event"] == name)?;
        Some(self.events.remove(at))
    }

    /// The next event named `name`, which must come.
    pub(crate) fn await_event(&mut self, name: &str) -> Result<Value> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.events.iter().position(|event| event["event"] == name) {
                return Ok(self.events.remove(at));
            }
            let message = self.receive(deadline)?;
            self.keep(message.with_context(|| format!("no {name} from QEMU in {} s", PATIENCE.as_secs()))?);
        }
    }

    /// One message, or none by the deadline.
    fn receive(&mut self, deadline: Instant) -> Result<Option<Value>> {
        loop {
            if let Some(end) = self.received.iter().position(|&b| b == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                let message = serde_json::from_slice(&line);
                return message.context("QEMU sent something that is not JSON").map(Some);
            }
            // A timeout of zero would mean "for ever"; a millisecond is as good as none.
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            self.stream.set_read_timeout(Some(left))?;
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => bail!("QEMU closed the connection"),
                Ok(n) => self.received.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Ok(None),
                Err(e) => return Err(e).context("reading from QEMU"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};

    /// A QEMU that answers each request with the next of `answers`.
    fn scripted(answers: &'static [&'static str]) -> Qmp {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        std::thread::spawn(move || {
            let mut reader = BufReader::new(theirs.try_clone().expect("a second handle"));
            let mut theirs = theirs;
            writeln!(theirs, "{{\"QMP\": {{}}}}").expect("a greeting");
            for answer in answers {
                let mut request = String::new();
                reader.read_line(&mut request).expect("a request");
                writeln!(theirs, "{answer}").expect("an answer");
            }
        });
        Qmp::new(ours)
    }

    #[test]
    fn answers_are_told_from_events() {
        let mut qmp = scripted(&[
            r#"{"return": {}, "id": 1}"#,
            "{\"event\": \"STOP\"}\n{\"return\": \"text\", \"id\": 2}",
        ]);
        qmp.negotiate().expect("negotiation");
        assert_eq!(qmp.monitor(0, "info status").expect("an answer"), "text");
        assert!(qmp.event("STOP").is_some());
        assert!(qmp.event("STOP").is_none());
    }

    #[test]
    fn refusals_and_nonsense_are_errors() {
        let mut qmp = scripted(&[r#"{"error": {"desc": "no such thing"}, "id": 1}"#, "nonsense"]);
        let refusal = qmp.command("x", &json!({})).expect_err("a refusal");
        assert!(refusal.to_string().contains("no such thing"));
        assert!(qmp.command("y", &json!({})).is_err());
        assert!(qmp.command("z", &json!({})).is_err(), "the connection is closed by now");
    }
}
