//! Jinja2's escaped text.
//!
//! The filters `safe` and `escape` give a text that is marked as escaped. The mark shows in one place only, as templates
//! of models print everything as it is: `+` escapes the other text if one of the two is marked. The template engine here
//! has no such `+`. In a template that may add a marked text the filters fail, so that no prompt is rendered wrongly; in
//! all others they leave out the mark.

use std::collections::HashSet;

use minijinja::machinery::ast::{BinOpKind, CallArg, Expr, Stmt};
use minijinja::value::Value;
use minijinja::{Environment, Error, ErrorKind};

use super::syntax::{Node, nodes};

/// The filters whose result is marked.
const MARKING: [&str; 4] = ["safe", "escape", "e", "forceescape"];
/// Filters whose result is never marked.
const PLAIN: [&str; 6] = ["tojson", "join", "replace", "length", "int", "float"];

/// Adds the filters, for this template.
pub(super) fn add_to(environment: &mut Environment<'static>, template: &Stmt<'_>) {
    if Marked::of(template).is_added {
        for name in MARKING {
            environment.add_filter(name, move |_: &Value| -> Result<Value, Error> {
                let message =
                    format!("the filter {name} is not supported where + may join its result to a text");
                Err(Error::new(ErrorKind::InvalidOperation, message))
            });
        }
        return;
    }
    environment.add_filter("safe", |value: &Value| match value.as_str() {
        Some(_) => value.clone(),
        None => Value::from(value.to_string()),
    });
    for name in &MARKING[1..] {
        environment.add_filter(*name, |value: &Value| escaped(&value.to_string()));
    }
}

/// Where marked texts may get to in a template. Names count wherever they are used, whatever their scope.
#[derive(Debug, Default)]
struct Marked<'n> {
    /// Variables, parameters of macros, and attributes of namespaces that may be marked.
    names: HashSet<&'n str>,
    /// Whether `+` may join a marked text to another.
    is_added: bool,
}

impl<'n> Marked<'n> {
    fn of<'a: 'n>(template: &'n Stmt<'a>) -> Self {
        let mut marked = Self::default();
        let nodes = nodes(std::slice::from_ref(template));
        let marks =
            |node: &Node<'n, 'a>| matches!(node, Node::Expression(expression) if is_marking(expression));
        if !nodes.iter().any(marks) {
            return marked;
        }
        // Each pass follows one more step of names that are assigned to each other.
        loop {
            let known = marked.names.len();
            nodes.iter().for_each(|node| marked.follow(node, &nodes));
            if marked.names.len() == known {
                return marked;
            }
        }
    }

    fn follow<'a: 'n>(&mut self, node: &Node<'n, 'a>, all: &[Node<'n, 'a>]) {
        match node {
            Node::Statement(Stmt::Set(set)) => self.assign(&set.target, &set.expr),
            Node::Statement(Stmt::ForLoop(each)) => self.assign(&each.target, &each.iter),
            Node::Statement(Stmt::WithBlock(with)) => {
                for (target, value) in &with.assignments {
                    self.assign(target, value);
                }
            }
            Node::Call(call) => {
                let passes = call.args.iter().any(|argument| match argument {
                    CallArg::Pos(value)
                    | CallArg::Kwarg(_, value)
                    | CallArg::PosSplat(value)
                    | CallArg::KwargSplat(value) => self.may_be(value),
                });
                if let (true, Expr::Var(called)) = (passes, &call.expr) {
                    for node in all {
                        if let Node::Macro(declared) = node
                            && declared.name == called.id
                        {
                            declared.args.iter().for_each(|argument| self.name(argument));
                        }
                    }
                    // `namespace(x=…)`, for one.
                    for argument in &call.args {
                        if let CallArg::Kwarg(name, _) = argument {
                            self.names.insert(name);
                        }
                    }
                }
            }
            Node::Expression(Expr::BinOp(operation)) if matches!(operation.op, BinOpKind::Add) => {
                self.is_added |= self.may_be(&operation.left) || self.may_be(&operation.right);
            }
            _ => {}
        }
    }

    fn assign<'a: 'n>(&mut self, target: &'n Expr<'a>, value: &Expr<'_>) {
        if self.may_be(value) {
            self.name(target);
        }
    }

    fn name<'a: 'n>(&mut self, target: &'n Expr<'a>) {
        match target {
            Expr::Var(variable) => drop(self.names.insert(variable.id)),
            Expr::GetAttr(access) => drop(self.names.insert(access.name)),
            Expr::Tuple(targets) => targets.items.iter().for_each(|target| self.name(target)),
            Expr::List(targets) => targets.items.iter().for_each(|target| self.name(target)),
            _ => {}
        }
    }

    /// Whether the expression's value, or a part of it, may be marked.
    fn may_be(&self, expression: &Expr<'_>) -> bool {
        match expression {
            Expr::Var(variable) => self.names.contains(variable.id),
            Expr::GetAttr(access) => self.names.contains(access.name) || self.may_be(&access.expr),
            Expr::GetItem(access) => self.may_be(&access.expr),
            Expr::Slice(slice) => self.may_be(&slice.expr),
            Expr::IfExpr(condition) => {
                self.may_be(&condition.true_expr)
                    || condition
                        .false_expr
                        .as_ref()
                        .is_some_and(|otherwise| self.may_be(otherwise))
            }
            Expr::Filter(filter) => {
                MARKING.contains(&filter.name)
                    || !PLAIN.contains(&filter.name)
                        && filter.expr.as_ref().is_some_and(|inner| self.may_be(inner))
            }
            Expr::BinOp(operation) => {
                let keeps = matches!(
                    operation.op,
                    BinOpKind::Add | BinOpKind::Mul | BinOpKind::ScAnd | BinOpKind::ScOr
                );
                keeps && (self.may_be(&operation.left) || self.may_be(&operation.right))
            }
            // A method of a marked text; what a macro returns is plain.
            Expr::Call(call) => matches!(&call.expr, Expr::GetAttr(method) if self.may_be(&method.expr)),
            Expr::List(list) => list.items.iter().any(|item| self.may_be(item)),
            Expr::Tuple(tuple) => tuple.items.iter().any(|item| self.may_be(item)),
            Expr::Map(map) => map.values.iter().any(|member| self.may_be(member)),
            Expr::Const(_) | Expr::UnaryOp(_) | Expr::Compare(_) | Expr::Test(_) => false,
        }
    }
}

fn is_marking(expression: &Expr<'_>) -> bool {
    matches!(expression, Expr::Filter(filter) if MARKING.contains(&filter.name))
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
