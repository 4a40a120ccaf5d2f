//! Whether a template expects a message's content as a string or as a list of parts.
//!
//! Engines look for a loop over the content of a message in the template, and convert all messages to the form that
//! they conclude from it. The search of each engine is followed to the letter, mistakes included: the prompt is what the
//! engine makes of it.

use std::collections::HashSet;

use minijinja::machinery::ast::{Call, CallArg, Expr, ForLoop, Macro, Set, Stmt};

use super::syntax::{Node, nodes};
use crate::preparation::MessagePreparation;

/// The form of a message's content that a template expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ContentFormat {
    /// A string.
    Text,
    /// A list of `{"type": "text", "text": …}`.
    Parts,
}

/// The form that the engine concludes from the template.
pub(super) fn detect(source: &str, template: &Stmt<'_>, preparation: MessagePreparation) -> ContentFormat {
    let found = match preparation {
        // `transformers` passes on what the client sent. Where a template takes both forms, a list stays a list.
        MessagePreparation::Signalbox | MessagePreparation::Vllm => {
            Template::of(template).loops_over_content().unwrap_or(false)
        }
        MessagePreparation::Sglang => {
            ["image", "audio", "video", "vision"]
                .iter()
                .any(|word| source.contains(word))
                || Template::of(template).loops_over_content_of(&["message", "msg", "m"])
        }
    };
    if found {
        ContentFormat::Parts
    } else {
        ContentFormat::Text
    }
}

/// vLLM's search ends without a result where a loop or an assignment has another target than one name.
struct NoSimpleTarget;

/// The parts of a template that the search looks at.
#[derive(Default)]
struct Template<'n, 'a> {
    loops: Vec<&'n ForLoop<'a>>,
    assignments: Vec<&'n Set<'a>>,
    macros: Vec<&'n Macro<'a>>,
    calls: Vec<&'n Call<'a>>,
}

impl<'n, 'a> Template<'n, 'a> {
    fn of(template: &'n Stmt<'a>) -> Self {
        Self::within(std::slice::from_ref(template))
    }

    fn within(statements: &'n [Stmt<'a>]) -> Self {
        let mut parts = Self::default();
        for node in nodes(statements) {
            match node {
                Node::Statement(Stmt::ForLoop(each)) => parts.loops.push(each),
                Node::Statement(Stmt::Set(set)) => parts.assignments.push(set),
                Node::Macro(declared) => parts.macros.push(declared),
                Node::Call(call) => parts.calls.push(call),
                Node::Statement(_) | Node::Expression(_) => {}
            }
        }
        parts
    }

    /// SGLang's `detect_jinja_template_content_format`.
    fn loops_over_content_of(&self, messages: &[&str]) -> bool {
        let over_content = |each: &&ForLoop<'a>| {
            messages
                .iter()
                .any(|message| accesses(&each.iter, message, Some("content")))
        };
        self.loops.iter().any(over_content)
    }

    /// vLLM's `_iter_nodes_assign_content_item`.
    fn loops_over_content(&self) -> Result<bool, NoSimpleTarget> {
        let messages = self.names_of_messages()?;
        let of_message = |expression: &Expr<'a>| {
            messages
                .iter()
                .any(|message| accesses(expression, message, Some("content")))
        };
        let mut in_macros = HashSet::new();
        // Loops of a macro, with the macro's parameters that get a message's content.
        let mut with_content = Vec::new();
        for declared in &self.macros {
            let parameters = self.parameters_with_content(declared, &of_message);
            for each in Self::within(&declared.body).loops {
                in_macros.insert(std::ptr::from_ref(each));
                if !parameters.is_empty() {
                    with_content.push((std::ptr::from_ref(each), parameters.clone()));
                }
            }
        }
        for each in &self.loops {
            let address = std::ptr::from_ref(*each);
            let iterated = name_of(&each.iter);
            let found = of_message(&each.iter)
                || iterated.is_ok_and(|iterated| {
                    let of_macro = with_content.iter().rev().find(|(inner, _)| *inner == address);
                    of_macro.is_some_and(|(_, parameters)| parameters.contains(&iterated))
                        || (iterated == "content" && !in_macros.contains(&address))
                });
            if found {
                return name_of(&each.target).map(|_| true);
            }
        }
        Ok(false)
    }

    /// The names that loops over the messages give to a message.
    fn names_of_messages(&self) -> Result<Vec<&'n str>, NoSimpleTarget> {
        let mut lists = vec!["messages"];
        let mut at = 0;
        while let Some(list) = lists.get(at).copied() {
            at += 1;
            for set in &self.assignments {
                if accesses(&set.expr, list, None) {
                    let name = name_of(&set.target)?;
                    if !lists.contains(&name) {
                        lists.push(name);
                    }
                }
            }
        }
        let mut names = Vec::new();
        for each in &self.loops {
            if lists.iter().any(|list| accesses(&each.iter, list, None)) {
                names.push(name_of(&each.target)?);
            }
        }
        Ok(names)
    }

    /// The parameters of a macro that get a message's content in a call.
    fn parameters_with_content(
        &self,
        declared: &'n Macro<'a>,
        is_content: &impl Fn(&Expr<'a>) -> bool,
    ) -> Vec<&'n str> {
        let parameters: Vec<_> = declared
            .args
            .iter()
            .filter_map(|parameter| name_of(parameter).ok())
            .collect();
        let mut found = Vec::new();
        let calls = self.calls.iter();
        for call in calls.filter(|call| name_of(&call.expr).is_ok_and(|name| name == declared.name)) {
            let mut position = 0;
            for argument in &call.args {
                match argument {
                    CallArg::Pos(value) => {
                        if let Some(parameter) = parameters.get(position)
                            && is_content(value)
                        {
                            found.push(*parameter);
                        }
                        position += 1;
                    }
                    CallArg::Kwarg(name, value) if is_content(value) => {
                        found.extend(parameters.iter().find(|parameter| *parameter == name));
                    }
                    _ => {}
                }
            }
        }
        found
    }
}

/// Whether the expression is the variable, or its item `key`, also behind filters, tests and slices.
fn accesses(expression: &Expr<'_>, variable: &str, key: Option<&str>) -> bool {
    let mut expression = expression;
    loop {
        expression = match expression {
            Expr::Filter(filter) => match &filter.expr {
                Some(inner) => inner,
                None => return false,
            },
            Expr::Test(test) => &test.expr,
            Expr::Slice(slice) => &slice.expr,
            _ => break,
        };
    }
    let is_variable = |expression: &Expr<'_>| name_of(expression).is_ok_and(|name| name == variable);
    match (key, expression) {
        (None, expression) => is_variable(expression),
        (Some(key), Expr::GetAttr(access)) => access.name == key && is_variable(&access.expr),
        (Some(key), Expr::GetItem(access)) => {
            matches!(&access.subscript_expr, Expr::Const(constant) if constant.value.as_str() == Some(key))
                && is_variable(&access.expr)
        }
        _ => false,
    }
}

fn name_of<'n, 'a: 'n>(expression: &'n Expr<'a>) -> Result<&'n str, NoSimpleTarget> {
    match expression {
        Expr::Var(variable) => Ok(variable.id),
        _ => Err(NoSimpleTarget),
    }
}

#[cfg(test)]
mod tests {
    use minijinja::machinery::parse;
    use minijinja::syntax::SyntaxConfig;

    use super::*;

    fn found(source: &str, preparation: MessagePreparation) -> ContentFormat {
        detect(
            source,
            &parse(source, "t", SyntaxConfig::default()).unwrap(),
            preparation,
        )
    }

    /// Checked against `_detect_content_format` of vLLM 0.32.
    #[test]
    fn vllm_finds_loops_over_content() {
        let parts = |source: &str| found(source, MessagePreparation::Vllm) == ContentFormat::Parts;
        for source in [
            "{% for m in messages %}{% for c in m.content %}{% endfor %}{% endfor %}",
            "{% for m in messages %}{% for c in m['content'] %}{% endfor %}{% endfor %}",
            "{% set l = messages[1:] %}{% for x in l %}{% for c in x.content | list %}{% endfor %}{% endfor %}",
            "{% for c in content %}{% endfor %}",
            "{% macro f(x) %}{% for c in x %}{% endfor %}{% endmacro %}{% for m in messages %}{{ f(m.content) }}{% endfor %}",
            "{% macro f(y, x) %}{% for c in x %}{% endfor %}{% endmacro %}{% for m in messages %}{{ f(1, x=m.content) }}{% endfor %}",
            "{% set a = messages %}{% set b = a %}{% set a = b %}{% for m in b if m %}{% for c in m.content %}{% endfor %}{% endfor %}",
        ] {
            assert!(parts(source), "{source}");
        }
        for source in [
            "{% for m in messages %}{{ m.content }}{% endfor %}",
            "{% for m in messages %}{% for t in m.tool_calls %}{% endfor %}{% endfor %}",
            "{% macro f(content) %}{% for c in content %}{% endfor %}{% endmacro %}{{ f(1) }}",
            "{% macro f(x) %}{% for c in x %}{% endfor %}{% endmacro %}{% for m in messages %}{{ f(m.role) }}{% endfor %}",
            "{% set ns.l = messages %}{% for m in messages %}{% for c in m.content %}{% endfor %}{% endfor %}",
            "{% for a, b in messages %}{% endfor %}{% for m in messages %}{% for c in m.content %}{% endfor %}{% endfor %}",
            "{% for m in other %}{% for c in m.content %}{% endfor %}{% endfor %}",
        ] {
            assert!(!parts(source), "{source}");
        }
    }

    #[test]
    fn sglang_looks_at_three_names_and_at_words_for_media() {
        let parts = |source: &str| found(source, MessagePreparation::Sglang) == ContentFormat::Parts;
        assert!(parts("{% for c in message.content %}{% endfor %}"));
        assert!(parts("{% for c in m['content'] %}{% endfor %}"));
        assert!(parts("{{ '<image>' }}"));
        assert!(!parts("{% for c in x.content %}{% endfor %}"));
        assert!(!parts("{% for c in content %}{% endfor %}"));
    }
}
