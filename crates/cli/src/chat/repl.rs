//! Reads lines, keeps the conversation, shows answers as they come.

use std::io::{self, BufRead, IsTerminal as _, Write};

use anyhow::Result;
use serde_json::{Value, json};

use super::client::Client;
use crate::console;

const HELP: &str = "/reset forgets the conversation, /exit (or Ctrl-D) ends it; anything else is said to the model.";

/// What answers: a server, or a test's stand-in.
pub(super) trait Answers {
    /// Returns the answer to a conversation, and hands its pieces to `show` as they come.
    ///
    /// # Errors
    /// There is no answer; why.
    fn answer(
        &mut self,
        messages: &[Value],
        show: &mut dyn FnMut(&str) -> io::Result<()>,
    ) -> Result<String>;

    /// Returns the model's name.
    fn model(&self) -> &str;
}

/// A conversation.
#[derive(Debug)]
pub(super) struct Repl<A> {
    other: A,
    messages: Vec<Value>,
    system: Option<Value>,
    /// How many messages had no answer.
    num_failed: usize,
}

impl Repl<Client> {
    /// Starts a conversation, with a system message where there is one.
    pub(super) fn new(client: Client, system: Option<&str>) -> Self {
        Self::with(client, system)
    }
}

impl<A: Answers> Repl<A> {
    fn with(other: A, system: Option<&str>) -> Self {
        let system = system.map(|text| json!({ "role": "system", "content": text }));
        Self { other, messages: system.iter().cloned().collect(), system, num_failed: 0 }
    }

    /// Answers line by line until `/exit` or the input's end.
    ///
    /// # Errors
    /// The input or output is lost; a failed answer is shown and the conversation goes on, and only where nobody sits at the
    /// terminal is it an error in the end.
    pub(super) fn run(&mut self, input: &mut impl BufRead, output: &mut impl Write) -> Result<()> {
        // Piped input wants the answers alone.
        let is_piped = !io::stdin().is_terminal();
        let prompt = if is_piped { "" } else { "> " };
        if !prompt.is_empty() {
            console::note(format_args!("Chatting with {}. {HELP}", self.other.model()));
        }
        let mut line = String::new();
        loop {
            write!(output, "{prompt}")?;
            output.flush()?;
            line.clear();
            if input.read_line(&mut line)? == 0 {
                anyhow::ensure!(
                    !is_piped || self.num_failed == 0,
                    "messages without an answer: {}",
                    self.num_failed
                );
                return Ok(());
            }
            match line.trim() {
                "" => {}
                "/exit" | "/quit" => return Ok(()),
                "/help" => writeln!(output, "{HELP}")?,
                "/reset" => self.messages = self.system.iter().cloned().collect(),
                said => self.say(said, output)?,
            }
        }
    }

    fn say(&mut self, said: &str, output: &mut impl Write) -> Result<()> {
        self.messages.push(json!({ "role": "user", "content": said }));
        let mut show = |piece: &str| write!(output, "{piece}").and_then(|()| output.flush());
        match self.other.answer(&self.messages, &mut show) {
            Ok(answer) => self.messages.push(json!({ "role": "assistant", "content": answer })),
            Err(error) if error.is::<io::Error>() => return Err(error),
            Err(error) => {
                self.num_failed += 1;
                self.messages.pop();
                console::note(format_args!("error: {error:#}"));
            }
        }
        writeln!(output)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers with the number of messages it was sent, and fails on "fail".
    #[derive(Debug)]
    struct Counter;

    impl Answers for Counter {
        fn answer(
            &mut self,
            messages: &[Value],
            show: &mut dyn FnMut(&str) -> io::Result<()>,
        ) -> Result<String> {
            if messages.last().is_some_and(|last| last["content"] == "fail") {
                anyhow::bail!("it failed");
            }
            let text = messages.len().to_string();
            show(&text)?;
            Ok(text)
        }

        fn model(&self) -> &'static str {
            "counter"
        }
    }

    #[test]
    fn the_conversation_grows_and_can_be_reset() {
        let check = |system: Option<&str>, input: &str, expected: &str| {
            let mut output = Vec::new();
            let ran = Repl::with(Counter, system).run(&mut input.as_bytes(), &mut output);
            assert_eq!(ran.is_err(), input.contains("fail"), "{input}");
            assert_eq!(String::from_utf8(output).unwrap(), expected, "{input}");
        };
        check(None, "a\n\nb\n", "1\n3\n");
        check(Some("s"), "a\nb", "2\n4\n");
        check(Some("s"), "a\n/reset\nb\n", "2\n2\n");
        check(None, "a\n/exit\nb\n", "1\n");
        check(None, "fail\nb\n", "\n1\n");
    }
}
