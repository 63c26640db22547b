//! Asks a server for a chat completion and reads its stream.

use std::io::{self, BufRead as _, BufReader};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::{Value, json};
use ureq::Agent;

use super::repl::Answers;
use crate::args::ChatArgs;

/// A server, and how it is asked.
#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
    base: String,
    api_key: Option<String>,
    model: String,
    max_tokens: Option<u32>,
    temperature: Option<f32>,
}

impl Client {
    /// Finds out which model the server at `url` has.
    ///
    /// # Errors
    /// It can't be reached, or it is no such server.
    pub(super) fn connect(url: &str, args: &ChatArgs) -> Result<Self> {
        let url = url.trim_end_matches('/');
        let config = Agent::config_builder()
            .timeout_connect(Some(Duration::from_secs(5)))
            .http_status_as_error(false)
            .build();
        let mut client = Self {
            agent: config.into(),
            base: url.strip_suffix("/v1").unwrap_or(url).to_owned(),
            api_key: args.api_key.clone(),
            model: String::new(),
            max_tokens: args.max_tokens,
            temperature: args.temperature,
        };
        let mut request = client.agent.get(format!("{}/v1/models", client.base));
        if let Some(key) = &client.api_key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        let response = request.call().with_context(|| format!("no server answers at {url}"))?;
        let models = read_json(response)?;
        client.model = models["data"][0]["id"]
            .as_str()
            .with_context(|| format!("{url} answers, but serves no model"))?
            .to_owned();
        Ok(client)
    }
}

impl Answers for Client {
    fn answer(
        &mut self,
        messages: &[Value],
        show: &mut dyn FnMut(&str) -> io::Result<()>,
    ) -> Result<String> {
        let mut body = json!({ "model": self.model, "messages": messages, "stream": true });
        if let Some(max_tokens) = self.max_tokens {
            body["max_completion_tokens"] = max_tokens.into();
        }
        if let Some(temperature) = self.temperature {
            body["temperature"] = temperature.into();
        }
        let mut request = self
            .agent
            .post(format!("{}/v1/chat/completions", self.base))
            .header("Content-Type", "application/json");
        if let Some(key) = &self.api_key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        let response = request.send(body.to_string()).context("the server is gone")?;
        if !response.status().is_success() {
            read_json(response)?;
            bail!("the server refused");
        }
        let mut answer = String::new();
        for line in BufReader::new(response.into_body().into_reader()).lines() {
            // As text: the terminal's own errors end the chat, this one does not.
            let line = line.map_err(|error| anyhow!("the answer broke off: {error}"))?;
            let Some(data) = line.strip_prefix("data: ") else { continue };
            if data == "[DONE]" {
                return Ok(answer);
            }
            let event: Value = serde_json::from_str(data).context("the stream can't be read")?;
            if let Some(message) = event["error"]["message"].as_str() {
                bail!("{message}");
            }
            if let Some(text) = event["choices"][0]["delta"]["content"].as_str() {
                show(text)?;
                answer.push_str(text);
            }
        }
        bail!("the answer broke off")
    }

    fn model(&self) -> &str {
        &self.model
    }
}

/// Reads a JSON answer; a refusal becomes the error with the server's own words.
fn read_json(mut response: ureq::http::Response<ureq::Body>) -> Result<Value> {
    let status = response.status();
    let text = response.body_mut().read_to_string()?;
    let json: Value = serde_json::from_str(&text)
        .map_err(|_| anyhow!("the server answered with status {status} and no JSON"))?;
    if status.is_success() {
        return Ok(json);
    }
    bail!("{}", json["error"]["message"].as_str().unwrap_or(status.as_str()))
}
