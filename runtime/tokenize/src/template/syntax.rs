//! Walks the syntax tree of a template.

use minijinja::machinery::ast::{Call, CallArg, Expr, Macro, Stmt};

/// A part of a template.
#[derive(Clone, Copy)]
pub(super) enum Node<'n, 'a> {
    Statement(&'n Stmt<'a>),
    Expression(&'n Expr<'a>),
    Call(&'n Call<'a>),
    Macro(&'n Macro<'a>),
}

/// All parts below `statements`, each before the parts that it has, in the order of the source.
pub(super) fn nodes<'n, 'a>(statements: &'n [Stmt<'a>]) -> Vec<Node<'n, 'a>> {
    let mut found = Vec::new();
    // A list instead of calls: a template may be nested deeper than the stack allows.
    let mut waiting: Vec<_> = statements.iter().rev().map(Node::Statement).collect();
    while let Some(node) = waiting.pop() {
        found.push(node);
        let behind = waiting.len();
        match node {
            Node::Statement(statement) => parts_of_statement(statement, &mut waiting),
            Node::Expression(expression) => parts_of_expression(expression, &mut waiting),
            Node::Call(call) => parts_of_call(call, &mut waiting),
            Node::Macro(declared) => parts_of_macro(declared, &mut waiting),
        }
        waiting[behind..].reverse();
    }
    found
}

fn parts_of_statement<'n, 'a>(statement: &'n Stmt<'a>, parts: &mut Vec<Node<'n, 'a>>) {
    use Node::{Expression, Statement};
    match statement {
        Stmt::Template(template) => parts.extend(template.children.iter().map(Statement)),
        Stmt::EmitExpr(emit) => parts.push(Expression(&emit.expr)),
        Stmt::ForLoop(each) => {
            parts.extend([&each.target, &each.iter].map(Expression));
            parts.extend(each.filter_expr.as_ref().map(Expression));
            parts.extend(each.body.iter().chain(&each.else_body).map(Statement));
        }
        Stmt::IfCond(condition) => {
            parts.push(Expression(&condition.expr));
            let bodies = condition.true_body.iter().chain(&condition.false_body);
            parts.extend(bodies.map(Statement));
        }
        Stmt::WithBlock(with) => {
            let assigned = with.assignments.iter();
            parts.extend(assigned.flat_map(|(target, value)| [Expression(target), Expression(value)]));
            parts.extend(with.body.iter().map(Statement));
        }
        Stmt::Set(set) => parts.extend([&set.target, &set.expr].map(Expression)),
        Stmt::SetBlock(set) => {
            parts.push(Expression(&set.target));
            parts.extend(set.filter.as_ref().map(Expression));
            parts.extend(set.body.iter().map(Statement));
        }
        Stmt::AutoEscape(block) => {
            parts.push(Expression(&block.enabled));
            parts.extend(block.body.iter().map(Statement));
        }
        Stmt::FilterBlock(block) => {
            parts.push(Expression(&block.filter));
            parts.extend(block.body.iter().map(Statement));
        }
        Stmt::Block(block) => parts.extend(block.body.iter().map(Statement)),
        Stmt::Import(import) => parts.push(Expression(&import.expr)),
        Stmt::FromImport(import) => parts.push(Expression(&import.expr)),
        Stmt::Extends(extends) => parts.push(Expression(&extends.name)),
        Stmt::Include(include) => parts.push(Expression(&include.name)),
        Stmt::Macro(declared) => parts.push(Node::Macro(declared)),
        Stmt::CallBlock(block) => {
            parts.push(Node::Call(&block.call));
            parts_of_macro(&block.macro_decl, parts);
        }
        Stmt::Do(statement) => parts.push(Node::Call(&statement.call)),
        Stmt::EmitRaw(_) | Stmt::Continue(_) | Stmt::Break(_) => {}
    }
}

fn parts_of_expression<'n, 'a>(expression: &'n Expr<'a>, parts: &mut Vec<Node<'n, 'a>>) {
    use Node::Expression;
    match expression {
        Expr::Var(_) | Expr::Const(_) => {}
        Expr::Slice(slice) => {
            parts.push(Expression(&slice.expr));
            let bounds = [&slice.start, &slice.stop, &slice.step];
            parts.extend(bounds.into_iter().flatten().map(Expression));
        }
        Expr::UnaryOp(operation) => parts.push(Expression(&operation.expr)),
        Expr::BinOp(operation) => parts.extend([&operation.left, &operation.right].map(Expression)),
        Expr::Compare(compare) => {
            parts.push(Expression(&compare.expr));
            parts.extend(compare.ops.iter().map(|compared| Expression(&compared.expr)));
        }
        Expr::IfExpr(condition) => {
            parts.extend([&condition.test_expr, &condition.true_expr].map(Expression));
            parts.extend(condition.false_expr.as_ref().map(Expression));
        }
        Expr::Filter(filter) => {
            parts.extend(filter.expr.as_ref().map(Expression));
            parts_of_arguments(&filter.args, parts);
        }
        Expr::Test(test) => {
            parts.push(Expression(&test.expr));
            parts_of_arguments(&test.args, parts);
        }
        Expr::GetAttr(access) => parts.push(Expression(&access.expr)),
        Expr::GetItem(access) => parts.extend([&access.expr, &access.subscript_expr].map(Expression)),
        Expr::Call(call) => parts.push(Node::Call(call)),
        Expr::List(list) => parts.extend(list.items.iter().map(Expression)),
        Expr::Tuple(tuple) => parts.extend(tuple.items.iter().map(Expression)),
        Expr::Map(map) => parts.extend(map.keys.iter().chain(&map.values).map(Expression)),
    }
}

fn parts_of_call<'n, 'a>(call: &'n Call<'a>, parts: &mut Vec<Node<'n, 'a>>) {
    parts.push(Node::Expression(&call.expr));
    parts_of_arguments(&call.args, parts);
}

fn parts_of_macro<'n, 'a>(declared: &'n Macro<'a>, parts: &mut Vec<Node<'n, 'a>>) {
    let expressions = declared.args.iter().chain(&declared.defaults);
    parts.extend(expressions.map(Node::Expression));
    parts.extend(declared.body.iter().map(Node::Statement));
}

fn parts_of_arguments<'n, 'a>(arguments: &'n [CallArg<'a>], parts: &mut Vec<Node<'n, 'a>>) {
    parts.extend(arguments.iter().map(|argument| match argument {
        CallArg::Pos(value)
        | CallArg::Kwarg(_, value)
        | CallArg::PosSplat(value)
        | CallArg::KwargSplat(value) => Node::Expression(value),
    }));
}
