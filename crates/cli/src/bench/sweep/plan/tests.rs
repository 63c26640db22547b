use super::*;

fn plan(toml: &str, vary: &[&str], flags: &[&str]) -> Result<Plan> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("isoqps.toml");
    fs::write(&path, toml)?;
    Plan::read(&SweepArgs {
        plan: Some(path),
        vary: vary.iter().map(|&text| text.to_owned()).collect(),
        target: None,
        modes: Vec::new(),
        serve_cmd: None,
        server: Vec::new(),
        ttft_slo: None,
        tpot_slo: None,
        atta_target: 90.0,
        name: None,
        sweep_dir: None,
        dry_run: false,
        flags: flags.iter().map(|&text| text.to_owned()).collect(),
    })
}

const PLAN: &str = r#"
[flags]
model = "yi-34b"
num-prompts = 8
no-enable-prefix-caching = true
request-rate = 9

[vary]
request-rate = [0.5, 1]

[[variants]]
name = "vLLM 32"
scheduler = "vllm"
max-num-seqs = 32

[[variants]]
name = "Sarathi"
scheduler = "sarathi"
"#;

#[test]
fn every_combination_is_one_command_line() {
    let plan = plan(PLAN, &[], &["--seed=3"]).unwrap();
    assert_eq!(plan.name, "isoqps");
    let points = plan.points().unwrap();
    let lines: Vec<String> = points.iter().map(Point::command_line).collect();
    let common =
        "stallfree bench run --model=yi-34b --no-enable-prefix-caching --num-prompts=8 --seed=3";
    assert_eq!(
        lines,
        [
            format!(
                "{common} --max-num-seqs=32 --scheduler=vllm --request-rate=0.5 '--label=vLLM 32'"
            ),
            format!(
                "{common} --max-num-seqs=32 --scheduler=vllm --request-rate=1 '--label=vLLM 32'"
            ),
            format!("{common} --scheduler=sarathi --request-rate=0.5 --label=Sarathi"),
            format!("{common} --scheduler=sarathi --request-rate=1 --label=Sarathi"),
        ],
        "a flag that varies is not given twice"
    );
    assert_eq!(points[0].folder(), "vLLM-32_request-rate=0.5");
    assert_eq!(points[1].title(), "vLLM 32, request-rate 1");
    assert_eq!(points[1].group(), "vLLM 32");
}

#[test]
fn flags_alone_make_a_sweep() {
    let vary = ["scheduler=sarathi,vllm", "--request-rate=1,2,4"];
    let plan = plan("", &vary, &["--request-rate", "9", "--scheduler=orca", "yi-34b"]).unwrap();
    let points = plan.points().unwrap();
    assert_eq!(points.len(), 6);
    let expected =
        "stallfree bench run yi-34b --scheduler=sarathi --request-rate=1 --label=sarathi";
    assert_eq!(points[0].command_line(), expected);
    assert_eq!(points[5].folder(), "scheduler=vllm_request-rate=4");
    assert_eq!(points[5].group(), "vllm");
    assert_eq!((plan.settings().collect::<Vec<_>>(), plan.has_rates()), (vec!["scheduler"], true));
}

#[test]
fn one_instance_is_not_told_what_is_for_several() {
    let toml = "modes = [\"simple\", \"disaggregated\"]";
    let vary = ["dispatch-policy=slack,round-robin", "request-rate=1"];
    let points = plan(toml, &vary, &["m", "--schedule-policy=edf"]).unwrap().points().unwrap();
    let lines: Vec<String> = points.iter().map(Point::command_line).collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    let (simple, apart) = lines.split_first().unwrap();
    assert!(!simple.contains("policy") && simple.contains("--request-rate=1"), "{simple}");
    for (line, policy) in apart.iter().zip(["slack", "round-robin"]) {
        let told = line.contains(&format!("--dispatch-policy={policy}"));
        assert!(told && line.contains("--schedule-policy=edf"), "{line}");
    }
}

#[test]
fn a_server_of_its_own_is_measured_over_http() {
    let toml = "serve-cmd = \"stallfree serve m\"\n[vary]\nrequest-rate = [1]";
    let plan = plan(toml, &[], &["--num-prompts=3"]).unwrap();
    assert_eq!(plan.serve_cmd.as_deref(), Some("stallfree serve m"));
    let line = plan.points().unwrap()[0].command_line();
    let (line, seed) = line.split_once(" --prompt-seed=").unwrap();
    assert_eq!(line, "stallfree bench serve --num-prompts=3 --request-rate=1");
    assert!(seed.parse::<u32>().is_ok(), "each run has prompts of its own: {seed}");
}

#[test]
fn what_is_no_plan_is_refused() {
    let check = |toml: &str, vary: &[&str], expected: &str| {
        let error = plan(toml, vary, &[]).and_then(|plan| plan.points()).unwrap_err();
        assert!(format!("{error:#}").contains(expected), "{error:#}");
    };
    check("speed = 3", &[], "unknown field `speed`");
    check("", &["request-rate"], "request-rate=1,2,4");
    check("[vary]\nscheduler = []", &[], "no values");
    check("[flags]\nmodel = {a = 1}", &[], "a table is no value for a flag");
    check("[[variants]]\nname = \"a\"\n[[variants]]\nname = \"a\"", &[], "name the variants apart");
}
