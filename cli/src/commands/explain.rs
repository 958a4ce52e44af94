//! `croft explain`

use croft_proto::api::{Decision, ExplainReply, ExplainRequest};
use croft_proto::{instant, printable};

use crate::args::{Explain, Output};
use crate::client::{Control, call};
use crate::fault::Fault;
use crate::print::print;
use crate::table::Table;
use crate::text::{or_dash, share};

pub async fn run(control: &mut Control, options: Explain, output: Output) -> Result<(), Fault> {
    let request =
        ExplainRequest { farm: options.tier.farm, tier: options.tier.tier, limit: options.limit };
    let outcome = control.api.explain(call(request)).await;
    print(output, &control.answer(outcome)?, render)
}

fn render(reply: &ExplainReply) -> String {
    if reply.decisions.is_empty() {
        return "no decision yet\n".to_owned();
    }
    reply.decisions.iter().map(decision).collect::<Vec<_>>().join("\n")
}

fn decision(decision: &Decision) -> String {
    let size = match decision.from == decision.to {
        true => format!("at {}", decision.to),
        false => format!("{} to {}", decision.from, decision.to),
    };
    let plain = |text: &str| or_dash(&printable(text, ' '));
    let mut text = format!(
        "{}  {} {size}  rule {}  {} {} of target {}\n",
        instant(decision.at_ms),
        plain(&decision.action),
        plain(&decision.rule),
        plain(&decision.metric),
        share(decision.value),
        share(decision.target),
    );
    for reason in &decision.reasons {
        text.push_str(&format!("  {}\n", printable(reason, ' ')));
    }
    if !decision.inputs.is_empty() {
        let mut inputs = Table::new(&["MEMBER", ">CPU", ">NET", ">DISK", ">SAMPLES"]);
        for input in &decision.inputs {
            inputs.row([
                input.member.clone(),
                share(input.cpu),
                share(input.network),
                share(input.disk),
                input.samples.to_string(),
            ]);
        }
        for line in inputs.render().lines() {
            text.push_str(&format!("    {line}\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use croft_proto::api::DecisionInput;

    use super::*;

    #[test]
    fn a_decision_shows_its_rule_its_reasons_and_its_inputs() {
        let input = DecisionInput {
            member: "shop/web/1".to_owned(),
            cpu: 0.55,
            network: 0.1,
            disk: 0.0,
            samples: 8,
        };
        let grow = Decision {
            at_ms: 1_795_422_601_000,
            from: 2,
            to: 3,
            action: "grow".to_owned(),
            rule: "target".to_owned(),
            reasons: vec!["cpu is above the target".to_owned()],
            metric: "cpu".to_owned(),
            value: 0.55,
            target: 0.4,
            inputs: vec![input],
        };
        let expected = "\
2026-11-23 08:30:01Z  grow 2 to 3  rule target  cpu 55% of target 40%
  cpu is above the target
    MEMBER      CPU  NET  DISK  SAMPLES
    shop/web/1  55%  10%    0%        8
";
        assert_eq!(render(&ExplainReply { decisions: vec![grow] }), expected);
        assert_eq!(render(&ExplainReply::default()), "no decision yet\n");
    }
}
