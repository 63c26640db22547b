use serde_json::{Value as Json, json};

use super::{ChatTemplate, RenderOptions};
use crate::Error;

/// Each message between markers, as SmolLM2 and Qwen do it.
const CHATML: &str = "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
    {{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}\
    {{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Headers, a date, a namespace, tools: what Llama 3 uses.
const LLAMA3: &str = "{{- bos_token }}\n\
    {%- set ns = namespace(system='') %}\n\
    {%- if messages[0]['role'] == 'system' %}\n\
        {%- set ns.system = messages[0]['content']|trim %}\n\
        {%- set messages = messages[1:] %}\n\
    {%- endif %}\n\
    {%- set date = strftime_now('%d %b %Y') %}\n\
    {{- '<|h|>system<|/h|>\n\nToday: ' + date + '\n' + ns.system + '<|e|>' }}\n\
    {%- if tools is not none and tools %}{% for t in tools %}{{ t | tojson(indent=2) }}{% endfor %}{% endif %}\n\
    {%- for m in messages %}\n\
        {{- '<|h|>' + m['role'] + '<|/h|>\n\n' + m['content'] | trim + '<|e|>' }}\n\
    {%- endfor %}\n\
    {%- if add_generation_prompt %}{{- '<|h|>assistant<|/h|>\n\n' }}{%- endif %}";

/// Turns must alternate, and the template says so itself: Mistral.
const MISTRAL: &str = "{{ bos_token }}{% for m in messages %}\
    {% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}\
    {{ raise_exception('Roles must alternate: user, assistant, user, ...') }}{% endif %}\
    {% if m['role'] == 'user' %}{{ '[INST] ' + m['content'].strip() + ' [/INST]' }}\
    {% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}\
    {% else %}{{ raise_exception('Only user and assistant speak here.') }}{% endif %}{% endfor %}";

/// Reversed loops, string methods, splitting thoughts off: Qwen 3.
const QWEN3: &str = "{%- set ns = namespace(last=-1) %}\
    {%- for m in messages[::-1] %}{%- if ns.last < 0 and m.role == 'user' and m.content is string \
    and not m.content.startswith('<tool>') %}{%- set ns.last = messages|length - 1 - loop.index0 %}{%- endif %}{%- endfor %}\
    {%- for m in messages %}{%- set content = m.content if m.content is string else '' %}\
    {%- if '</think>' in content %}{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}\
    {{- '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>\\n' }}{%- endfor %}\
    {%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}\
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}";

/// Wants lists of parts, as templates of models with images do.
const PARTS: &str = "{% for m in messages %}{{ m.role }}:{% for p in m.content %}\
    {% if p['type'] == 'text' %}{{ p['text'] }}{% endif %}{% endfor %};{% endfor %}";

fn turns(turns: &[(&str, &str)]) -> Json {
    turns.iter().map(|(role, content)| json!({ "role": role, "content": content })).collect()
}

fn options() -> RenderOptions {
    RenderOptions {
        add_generation_prompt: true,
        bos_token: Some("<s>".into()),
        eos_token: Some("</s>".into()),
        now: Some(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000)),
        ..RenderOptions::default()
    }
}

#[track_caller]
fn check(template: &str, messages: &Json, options: &RenderOptions, expected: &str) {
    let text = ChatTemplate::new(template).unwrap().render(messages, options).unwrap();
    assert_eq!(text, expected);
}

#[test]
fn chatml() {
    check(
        CHATML,
        &turns(&[("user", "Hi")]),
        &options(),
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    );
}

#[test]
fn llama3_with_date_system_prompt_and_tools() {
    let mut options = options();
    options.tools = Some(json!([{ "name": "f", "n": 1 }]));
    check(
        LLAMA3,
        &turns(&[("system", " S "), ("user", "a<b ")]),
        &options,
        "<s><|h|>system<|/h|>\n\nToday: 14 Nov 2023\nS<|e|>{\n  \"name\": \"f\",\n  \"n\": 1\n}\
         <|h|>user<|/h|>\n\na<b<|e|><|h|>assistant<|/h|>\n\n",
    );
}

#[test]
fn mistral_alternates() {
    check(
        MISTRAL,
        &turns(&[("user", " a "), ("assistant", "b"), ("user", "c")]),
        &options(),
        "<s>[INST] a [/INST] b</s>[INST] c [/INST]",
    );
}

#[test]
fn qwen3_drops_thoughts_and_takes_kwargs() {
    let mut options = options();
    options.kwargs.insert("enable_thinking".into(), json!(false));
    check(
        QWEN3,
        &turns(&[("user", "a"), ("assistant", "<think>x</think>\n\nb"), ("user", "c")]),
        &options,
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n\
         <|im_start|>assistant\n<think>\n\n</think>\n\n",
    );
}

#[test]
fn a_template_refuses_in_its_own_words() {
    let template = ChatTemplate::new(MISTRAL).unwrap();
    let error = template.render(&turns(&[("assistant", "b")]), &options()).unwrap_err();
    assert!(error.is_clients());
    assert!(
        matches!(&error, Error::Refused(why) if why.starts_with("Roles must alternate")),
        "{error}"
    );
}

#[test]
fn content_takes_the_form_that_the_template_was_written_for() {
    let strings = turns(&[("user", "a\nb")]);
    let parts = json!([{ "role": "user", "content": [
        { "type": "text", "text": "a" }, { "type": "text", "text": "b" }] }]);
    check(MISTRAL, &strings, &options(), "<s>[INST] a\nb [/INST]");
    check(MISTRAL, &parts, &options(), "<s>[INST] a\nb [/INST]");
    check(PARTS, &strings, &options(), "user:a\nb;");
    check(PARTS, &parts, &options(), "user:ab;");
    let nothing = json!([{ "role": "user", "content": null }]);
    check(MISTRAL, &nothing, &options(), "<s>[INST]  [/INST]");
    check(MISTRAL, &json!([{ "role": "user" }]), &options(), "<s>[INST]  [/INST]");
    check(PARTS, &nothing, &options(), "user:;");
}

#[test]
fn malformed_messages_are_named() {
    let check = |messages: Json, expected: &str| {
        let error = ChatTemplate::new(CHATML).unwrap().render(&messages, &options()).unwrap_err();
        assert!(error.is_clients());
        assert_eq!(error.to_string(), expected);
    };
    check(json!({}), "messages: must be a list");
    check(json!([1]), "messages: [0] must be an object");
    check(json!([{ "content": "x" }]), "messages: [0].role must be a string");
    check(
        json!([{ "role": "user", "content": 3 }]),
        "messages: [0].content must be a string or a list of parts",
    );
    check(
        json!([{ "role": "user", "content": [{ "type": "image_url", "image_url": {} }] }]),
        "messages: [0].content[0].type is \"image_url\", but this model takes only text",
    );
}

#[test]
fn the_last_message_is_continued() {
    let options =
        RenderOptions { add_generation_prompt: false, continue_final_message: true, ..options() };
    check(
        CHATML,
        &turns(&[("system", "s"), ("user", "Count."), ("assistant", "One, two, ")]),
        &options,
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nCount.<|im_end|>\n<|im_start|>assistant\nOne, two,",
    );
}

#[test]
fn generation_blocks_render_and_loops_can_be_left() {
    check(
        "{% for m in messages %}{%- generation -%} {{ m.content }} {%- endgeneration -%}\
         {% if loop.index == 2 %}{% break %}{% endif %}{% endfor %}",
        &turns(&[("user", "a"), ("user", "b"), ("user", "c")]),
        &options(),
        "ab",
    );
}

#[test]
fn json_is_written_as_python_writes_it() {
    let mut options = options();
    options.tools = Some(json!({ "b": [1, 2.5, null, true], "a": "é<>\"" }));
    let check = |call: &str, expected: &str| {
        check(&format!("{{{{ tools | {call} }}}}"), &json!([]), &options, expected);
    };
    check("tojson", r#"{"b": [1, 2.5, null, true], "a": "é<>\""}"#);
    check("tojson(ensure_ascii=true)", r#"{"b": [1, 2.5, null, true], "a": "\u00e9<>\""}"#);
    check(
        "tojson(separators=(',', ':'), sort_keys=true)",
        r#"{"a":"é<>\"","b":[1,2.5,null,true]}"#,
    );
}

#[test]
fn a_template_that_runs_away_is_stopped() {
    let endless =
        "{% for a in range(9999) %}{% for b in range(9999) %}{{ '' }}{% endfor %}{% endfor %}";
    let error = ChatTemplate::new(endless).unwrap().render(&json!([]), &options()).unwrap_err();
    assert!(matches!(error, Error::Render(_)), "{error}");
}

#[test]
fn the_default_of_several_templates_counts() {
    let config =
        json!([{ "name": "tool_use", "template": "t" }, { "name": "default", "template": "d" }]);
    let text = ChatTemplate::from_config(&config).unwrap().render(&json!([]), &options()).unwrap();
    assert_eq!(text, "d");
    assert!(ChatTemplate::from_config(&json!([])).is_err());
    assert!(matches!(ChatTemplate::new("{% if %}"), Err(Error::TemplateSyntax(_))));
}
