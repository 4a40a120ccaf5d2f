//! Jinja2's escaped text.
//!
//! The filters `safe` and `escape` give a text that is marked as escaped, and Jinja2 then escapes every other text that
//! is joined to it. The template engine here does not. Where the result is printed at once, the mark has no effect;
//! elsewhere the filter fails, so that no prompt is rendered wrongly.

use minijinja::machinery::ast::{Expr, Stmt};
use minijinja::value::Value;
use minijinja::{Environment, Error, ErrorKind};

use super::syntax::{Node, nodes};

/// The filters whose result is marked.
const MARKING: [&str; 4] = ["safe", "escape", "e", "forceescape"];

/// Adds the filters, for this template.
pub(super) fn add_to(environment: &mut Environment<'static>, template: &Stmt<'_>) {
    if spreads(template) {
        for name in MARKING {
            environment.add_filter(name, move |_: &Value| -> Result<Value, Error> {
                let message =
                    format!("the filter {name} is supported only where its result is printed at once");
                Err(Error::new(ErrorKind::InvalidOperation, message))
            });
        }
        return;
    }
    environment.add_filter("safe", |value: &Value| value.clone());
    for name in &MARKING[1..] {
        environment.add_filter(*name, |value: &Value| escaped(&value.to_string()));
    }
}

/// Whether a marked text is used otherwise than printed.
fn spreads(template: &Stmt<'_>) -> bool {
    let mut printed = Vec::new();
    let mut used = 0;
    for node in nodes(std::slice::from_ref(template)) {
        match node {
            Node::Statement(Stmt::EmitExpr(emit)) => printed.extend(results(&emit.expr)),
            Node::Statement(Stmt::FilterBlock(block)) => printed.push(&block.filter),
            Node::Expression(expression) if is_marking(expression) => used += 1,
            _ => {}
        }
    }
    used > printed
        .into_iter()
        .filter(|expression| is_marking(expression))
        .count()
}

fn is_marking(expression: &Expr<'_>) -> bool {
    matches!(expression, Expr::Filter(filter) if MARKING.contains(&filter.name))
}

/// The expressions whose value may be that of `expression`: it, or the two branches of a condition.
fn results<'n, 'a>(expression: &'n Expr<'a>) -> Vec<&'n Expr<'a>> {
    match expression {
        Expr::IfExpr(condition) => std::iter::once(&condition.true_expr)
            .chain(&condition.false_expr)
            .collect(),
        other => vec![other],
    }
}

/// The text as `markupsafe.escape` writes it.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&#34;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}
