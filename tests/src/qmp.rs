// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! QEMU's machine protocol (QMP): one JSON object per line, a greeting, then a reply per command with events between.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
};

use serde_json::{Value, json};

use crate::PATIENCE;

/// A connection to QEMU's QMP server, past its greeting.
#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
    /// Events that came while something else was awaited, oldest first.
    events: Vec<Value>,
}

impl Qmp {
    /// Takes the greeting and leaves negotiation mode.
    ///
    /// # Panics
    /// When the peer does not speak QMP.
    #[must_use]
    #[track_caller]
    pub fn new(stream: UnixStream) -> Self {
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("a socket takes a timeout");
        let mut qmp = Self {
            stream: BufReader::new(stream),
            events: Vec::new(),
        };
        let greeting = qmp.receive();
        assert!(
            greeting.get("QMP").is_some(),
            "not a QMP greeting: {greeting}"
        );
        qmp.execute("qmp_capabilities", json!({}));
        qmp
    }

    /// Executes a command and returns what it returns.
    ///
    /// # Panics
    /// When QEMU refuses it or is gone.
    #[track_caller]
    pub fn execute(&mut self, command: &str, arguments: Value) -> Value {
        match self.try_execute(command, arguments) {
            Ok(value) => value,
            Err(error) => panic!("QEMU refuses {command}: {error}"),
        }
    }

    /// Executes a command and returns what it returns, or the text of QEMU's error.
    ///
    /// # Errors
    /// What QEMU says when it refuses.
    ///
    /// # Panics
    /// When QEMU is gone.
    #[track_caller]
    pub fn try_execute(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        let mut request = json!({ "execute": command, "arguments": arguments }).to_string();
        request.push('\n');
        if let Err(error) = self.stream.get_mut().write_all(request.as_bytes()) {
            panic!("QEMU does not take {command}: {error}");
        }
        loop {
            let mut reply = self.receive();
            if let Some(value) = reply.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = reply.get("error") {
                return Err(error["desc"]
                    .as_str()
                    .unwrap_or("no reason given")
                    .to_owned());
            }
            self.events.push(reply);
        }
    }

    /// Waits for the event `name` (also one that came before) and returns its data.
    ///
    /// # Panics
    /// When QEMU goes first.
    #[track_caller]
    pub fn wait_for_event(&mut self, name: &str) -> Value {
        loop {
            if let Some(at) = self.events.iter().position(|event| event["event"] == name) {
                return self.events.remove(at)["data"].take();
            }
            let event = self.receive();
            self.events.push(event);
        }
    }

    /// Executes a command of the human monitor and returns its text.
    ///
    /// # Panics
    /// When QEMU refuses it or is gone.
    #[track_caller]
    pub fn human(&mut self, line: &str) -> String {
        let text = self.execute("human-monitor-command", json!({ "command-line": line }));
        text.as_str().unwrap_or_default().to_owned()
    }

    /// Whether the virtual machine is in `state` (`running`, `paused`, `prelaunch`, ...).
    ///
    /// # Panics
    /// When QEMU is gone.
    #[track_caller]
    pub fn is_in_state(&mut self, state: &str) -> bool {
        self.execute("query-status", json!({}))["status"] == state
    }

    #[track_caller]
    fn receive(&mut self) -> Value {
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(0) => panic!("QEMU hung up"),
            Ok(_) => {}
            Err(error) => panic!("no message from QEMU: {error}"),
        }
        match serde_json::from_str(&line) {
            Ok(value) => value,
            Err(error) => panic!("not JSON ({error}): {line}"),
        }
    }
}
