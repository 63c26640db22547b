use super::instance::RoleName;
use super::number::{Auto, count};
use super::{Command, ServeArgs, parse};

/// Parses `serve` with the flags of one line.
fn serve(line: &str) -> Result<(ServeArgs, Vec<String>), String> {
    let argv = ["stallfree", "serve"].into_iter().chain(line.split_whitespace());
    let parsed = parse(argv.map(Into::into)).map_err(|error| error.to_string())?;
    match parsed.cli.command {
        Command::Serve(args) => Ok((*args, parsed.notices)),
        other => Err(format!("{other:?}")),
    }
}

/// Checks that a line is taken, and what is said about it.
fn check(line: &str, notice: &str) -> ServeArgs {
    let (args, notices) = serve(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    match notice {
        "" => assert!(notices.is_empty(), "{line}: {notices:?}"),
        _ => assert!(notices.len() == 1 && notices[0].contains(notice), "{line}: {notices:?}"),
    }
    args
}

fn check_refused(line: &str, expected: &[&str]) {
    let error = serve(line).expect_err(line);
    for expected in expected {
        assert!(error.contains(expected), "{line}: {error}");
    }
}

#[test]
fn counts_take_suffixes() {
    for (text, expected) in [
        ("2048", Some(2048)),
        ("0", Some(0)),
        ("1k", Some(1000)),
        ("1K", Some(1024)),
        ("25.6k", Some(25_600)),
        ("0.5K", None),
        ("1m", Some(1_000_000)),
        ("2G", Some(2 << 30)),
        ("1.5g", Some(1_500_000_000)),
        ("", None),
        ("k", None),
        ("-1", None),
        ("1.", Some(1)),
        (".5k", None),
        ("1e3", None),
        ("12 k", None),
        ("99999999999999999999", None),
        ("99999999999T", None),
        ("é", None),
    ] {
        assert_eq!(count(text).ok(), expected, "{text}");
    }
}

#[test]
fn vllms_flags_mean_the_same() {
    let defaults = check("", "");
    assert_eq!((defaults.server.port, defaults.engine.cache.block_size), (8000, 16));
    assert_eq!(
        (defaults.engine.scheduler.max_num_seqs, &*defaults.engine.scheduler.scheduler),
        (256, "sarathi")
    );
    assert_eq!(defaults.engine.model.max_model_len, None);

    let args =
        check("org/name --max_model_len=8K --port=9 --served-model-name a b --api-key x", "");
    assert_eq!(args.engine.model.model.as_deref(), Some("org/name"));
    assert_eq!(args.engine.model.max_model_len, Some(Auto::Exactly(8192)));
    assert_eq!(args.server.served_model_name, ["a", "b"]);
    assert_eq!(args.server.api_key, ["x"]);

    assert_eq!(check("--max-model-len -1", "").engine.model.max_model_len, Some(Auto::Fit));
    assert_eq!(check("--max-model-len auto", "").engine.model.max_model_len, Some(Auto::Fit));
    assert_eq!(check("--model m", "").engine.model.model_flag.as_deref(), Some("m"));
    assert!(check("--no-enable-prefix-caching", "").engine.cache.no_enable_prefix_caching);
    let last_wins = check("--no-enable-prefix-caching --enable-prefix-caching", "");
    assert!(!last_wins.engine.cache.no_enable_prefix_caching);
    let settings = check("--scheduler-config a=1 --scheduler_config b=x=y", "").engine.scheduler;
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    assert_eq!(settings.scheduler_config, [pair("a", "1"), pair("b", "x=y")]);
}

#[test]
fn vllms_other_flags_are_answered_by_name() {
    check("--trust-remote-code", "--trust-remote-code has no effect");
    check("--disable_cascade_attn --port 1", "--disable-cascade-attn has no effect");
    check("--no-async-scheduling", "--no-async-scheduling has no effect");
    check("--cudagraph-capture-sizes 1 2 4 --port 1", "--cudagraph-capture-sizes has no effect");
    check("-O3", "--compilation-config has no effect");
    check("-tp 1", "");
    check("--kv-cache-dtype auto --runner generate --logprobs-mode=raw_logprobs", "");
    check("--tensor-parallel-size=1", "");
    // The value of a flag of ours is not mistaken for a flag of vLLM's.
    assert_eq!(
        check("--chat-template task", "").engine.model.chat_template.as_deref(),
        Some("task")
    );

    let split = check("-tp 2 -pp=4", "").engine.cache;
    assert_eq!((split.tensor_parallel_size, split.pipeline_parallel_size), (2, 4));
    let words =
        ["stallfree", "instance", "m", "--join=h:1", "--role=decode", "-tp", "2", "--seed=3"];
    let instance = parse(words.map(Into::into)).expect("flags of an instance");
    assert_eq!(instance.notices.len(), 1, "{:?}", instance.notices);
    let Command::Instance(instance) = instance.cli.command else { panic!("{instance:?}") };
    assert_eq!(instance.engine.cache.tensor_parallel_size, 2);
    assert_eq!(instance.joining.role, RoleName::Decode);
    let bench = parse(["stallfree", "bench", "run", "m", "-tp", "2", "-pp=4"].map(Into::into));
    assert!(bench.is_ok(), "{bench:?}");
    check_refused("-dp 2", &["--data-parallel-size", "known", "not supported"]);
    check_refused("--lora-modules a=b c=d", &["--lora-modules", "LoRA"]);
    check_refused("--kv-cache-dtype fp8", &["--kv-cache-dtype"]);
    check_refused("--uds /tmp/x", &["--uds", "--host"]);
}

#[test]
fn what_is_unknown_or_wrong_is_named() {
    check_refused("--max-num-seq 4", &["--max-num-seq;", "did you mean --max-num-seqs?"]);
    check_refused("--max_num_seq=4", &["did you mean --max-num-seqs?"]);
    check_refused("--schedular orca", &["did you mean --scheduler?"]);
    check_refused("--tensor-paralel-size 2", &["did you mean --tensor-parallel-size?"]);
    check_refused("--colour blue", &["there is no flag --colour", "--help"]);
    check_refused("--join h:1", &["--join is no flag of this command"]);
    check_refused("--port 70000", &["--port", "70000"]);
    check_refused("--max-num-seqs 0", &["--max-num-seqs", "at least 1"]);
    check_refused("--scheduler-config chunk", &["KEY=VALUE"]);
    check_refused("--dtype int3", &["int3", "bfloat16"]);
    check_refused("a --model b", &["cannot be used with"]);
    check_refused("--api-key=", &["--api-key"]);
    check_refused("-tp 1000000000000", &["--tensor-parallel-size", "at most 1024"]);
    check_refused("--replica-spec 1,1000000000000", &["TENSOR,PIPELINE", "at most 1024"]);
    check_refused("--served-model-name=", &["--served-model-name"]);
    check_refused("--max-model-len 1e4", &["25.6k"]);
}

#[test]
fn other_commands_keep_their_words() {
    let parsed = parse(["stallfree", "chat", "--system", "enforce_eager"].map(Into::into)).unwrap();
    let Command::Chat(chat) = parsed.cli.command else { panic!("{parsed:?}") };
    assert_eq!(chat.system.as_deref(), Some("enforce_eager"));
    for wrong in [
        "--max-tokens=0",
        "--temperature=nan",
        "--temperature=-1",
        "--url=http://h a",
        "--url=http://h --model=a",
    ] {
        let argv = ["stallfree", "chat"].into_iter().chain(wrong.split(' '));
        assert!(parse(argv.map(Into::into)).is_err(), "{wrong}");
    }
    assert!(
        parse(["stallfree", "serv"].map(Into::into)).unwrap_err().to_string().contains("serve")
    );
    <super::Cli as clap::CommandFactory>::command().debug_assert();
}

#[test]
fn every_flag_is_explained() {
    fn check(command: &clap::Command) {
        for arg in command.get_arguments() {
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            assert!(!help.is_empty(), "{} {arg}", command.get_name());
        }
        command.get_subcommands().for_each(check);
    }
    check(&<super::Cli as clap::CommandFactory>::command());
}
