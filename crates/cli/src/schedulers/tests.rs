use stallfree_scheduler::POLICIES;

use super::{WIDTH, describe};

#[test]
fn every_policy_is_described_within_the_width() {
    let text = describe();
    assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let all = words(&text);
    for policy in POLICIES {
        assert!(text.lines().any(|line| line == policy.name), "{}", policy.name);
        assert!(all.contains(&words(policy.doc)), "{}", policy.name);
        assert!(all.contains(&words(policy.paper)), "{}", policy.name);
        for setting in policy.settings {
            assert!(text.contains(&format!("\n  {} (default: ", setting.name)), "{}", setting.name);
            assert!(all.contains(&words(setting.doc)), "{}", setting.name);
        }
    }
}
