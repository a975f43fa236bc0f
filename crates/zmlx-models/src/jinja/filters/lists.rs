//! Filters for lists and mappings.

use super::super::budget::{Items, Out};
use super::super::calls::{Args, count_of};
use super::super::fault::{Fault, Res};
use super::super::iter::{Iter, items_of, vec_of};
use super::super::lexer::is_space;
use super::super::ops;
use super::super::run::Run;
use super::super::text::write_str;
use super::super::value::{Key, Value};

impl Run<'_> {
    pub(super) fn list_filter(&self, name: &str, value: Value, args: Args) -> Res<Value> {
        let budget = self.budget;
        match name {
            "list" => {
                let [] = args.bind(name, [])?;
                budget.list(items_of(budget, &value)?)
            }
            "items" => {
                let [] = args.bind(name, [])?;
                let mut items = Items::new(budget);
                match &value {
                    Value::Undefined(_) => {}
                    Value::Dict(dict) => {
                        for (key, value) in dict.iter() {
                            items.push(budget.tuple(vec![key.clone(), value.clone()])?)?;
                        }
                    }
                    _ => return Fault::failed("Can only get item pairs from a mapping."),
                }
                budget.stream(items, Ok(()))
            }
            "first" => {
                let [] = args.bind(name, [])?;
                let first = Iter::over(&value)?.next(budget)?;
                Ok(first.unwrap_or_else(|| Value::Undefined("No first item, sequence was empty.".into())))
            }
            "last" => {
                let [] = args.bind(name, [])?;
                if matches!(value, Value::Stream(_)) {
                    return Fault::failed("'generator' object is not reversible");
                }
                let last = vec_of(budget, &value)?.pop();
                Ok(last.unwrap_or_else(|| Value::Undefined("No last item, sequence was empty.".into())))
            }
            "reverse" => {
                let [] = args.bind(name, [])?;
                if let Value::Str(text) = &value {
                    budget.room(text.as_str().len())?;
                    return budget.string(text.as_str().chars().rev().collect());
                }
                if matches!(value, Value::Undefined(_) | Value::None | Value::Int(_) | Value::Float(_)) {
                    return Fault::failed("argument must be iterable");
                }
                let mut items = Items::new(budget);
                let reversed = vec_of(budget, &value)?.into_iter().rev();
                reversed.into_iter().try_for_each(|item| items.push(item))?;
                budget.stream(items, Ok(()))
            }
            "join" => {
                let [sep, attribute] = args.bind(name, ["d", "attribute"])?;
                let sep = sep.map(|sep| self.text_of(&sep)).transpose()?;
                let mut out = Out::new(budget);
                let mut items = Iter::over(&value)?;
                let mut first = true;
                while let Some(item) = items.next(budget)? {
                    if !first && let Some(sep) = &sep {
                        out.push(sep.as_str())?;
                    }
                    first = false;
                    match &attribute {
                        Some(attribute) => write_str(&mut out, &self.path(&item, attribute, None)?)?,
                        None => write_str(&mut out, &item)?,
                    }
                }
                budget.written(out)
            }
            // An empty value gives an empty result, even if it cannot be iterated.
            "map" | "select" | "reject" | "selectattr" | "rejectattr" if !ops::truth(budget, &value)? => {
                budget.stream(Items::new(budget), Ok(()))
            }
            "map" => self.mapped(value, args),
            "select" | "reject" | "selectattr" | "rejectattr" => self.selected(name, value, args),
            "sum" => {
                let [attribute, start] = args.bind(name, ["attribute", "start"])?;
                let mut items = Iter::over(&value)?;
                let mut sum = start.unwrap_or(Value::Int(0));
                while let Some(item) = items.next(budget)? {
                    let item = match &attribute {
                        Some(a) if !matches!(a, Value::None) => self.path(&item, a, None)?,
                        _ => item,
                    };
                    if matches!(item, Value::Str(_)) {
                        return Fault::failed("unsupported operand type(s) for +: 'int' and 'str'");
                    }
                    sum = ops::binary(budget, super::super::ast::BinaryOp::Add, &sum, &item)?;
                }
                Ok(sum)
            }
            "min" | "max" => {
                let [case_sensitive, attribute] = args.bind(name, ["case_sensitive", "attribute"])?;
                let case_sensitive = self.flag(case_sensitive)?;
                let mut best: Option<(Value, Value)> = None;
                for item in vec_of(budget, &value)? {
                    let key = self.sort_key(&item, attribute.as_ref(), case_sensitive)?;
                    let is_better = match &best {
                        None => true,
                        Some((b, _)) if name == "min" => ops::less(budget, &key, b)?,
                        Some((b, _)) => ops::ordered(budget, &key, b, ">")?,
                    };
                    if is_better {
                        best = Some((key, item));
                    }
                }
                Ok(best.map_or_else(
                    || Value::Undefined("No aggregated item, sequence was empty.".into()),
                    |(_, item)| item,
                ))
            }
            "sort" => {
                let [reverse, case_sensitive, attribute] =
                    args.bind(name, ["reverse", "case_sensitive", "attribute"])?;
                let case_sensitive = self.flag(case_sensitive)?;
                let keyed = self.keyed(&value, attribute.as_ref(), case_sensitive)?;
                self.sorted_list(keyed, reverse)
            }
            "dictsort" => {
                let [case_sensitive, by, reverse] = args.bind(name, ["case_sensitive", "by", "reverse"])?;
                let case_sensitive = self.flag(case_sensitive)?;
                let by_value = match by.as_ref().map(Value::as_str) {
                    None | Some(Some("key")) => false,
                    Some(Some("value")) => true,
                    _ => return Fault::failed("You can only sort by either \"key\" or \"value\""),
                };
                let Value::Dict(dict) = &value else {
                    return Fault::failed(format!("'{}' object has no attribute 'items'", value.type_name()));
                };
                let mut keyed = Vec::new();
                for (key, value) in dict.iter() {
                    let by = if by_value { value } else { key };
                    let pair = budget.tuple(vec![key.clone(), value.clone()])?;
                    keyed.push((self.sort_key(by, None, case_sensitive)?, pair));
                }
                self.sorted_list(keyed, reverse)
            }
            "unique" => {
                let [case_sensitive, attribute] = args.bind(name, ["case_sensitive", "attribute"])?;
                let case_sensitive = self.flag(case_sensitive)?;
                #[expect(
                    clippy::mutable_key_type,
                    reason = "what changes is the account of bytes, not the key"
                )]
                let mut seen = std::collections::HashSet::new();
                let mut items = Items::new(budget);
                for item in vec_of(budget, &value)? {
                    let key = self.sort_key(&item, attribute.as_ref(), case_sensitive)?;
                    if seen.insert(Key::of(budget, &key)?) {
                        items.push(item)?;
                    }
                }
                budget.stream(items, Ok(()))
            }
            "groupby" => {
                let [attribute, default, case_sensitive] =
                    args.bind(name, ["attribute", "default", "case_sensitive"])?;
                let Some(attribute) = attribute else {
                    return Fault::failed("groupby() missing argument 'attribute'");
                };
                self.grouped(&value, &attribute, default.as_ref(), case_sensitive)
            }
            "batch" => {
                let [n, fill] = args.bind(name, ["linecount", "fill_with"])?;
                let n = n.map_or(Ok(0), |n| count_of(name, &n))?;
                self.batched(&value, n, fill)
            }
            _ => {
                let [n, fill] = args.bind(name, ["slices", "fill_with"])?;
                let n = n.map_or(Ok(0), |n| count_of(name, &n))?;
                self.in_slices(&value, n, fill)
            }
        }
    }

    /// The value at a path of attributes: `a.b.0`, or a single number.
    fn path(&self, item: &Value, path: &Value, default: Option<&Value>) -> Res<Value> {
        let mut value = item.clone();
        match path {
            Value::Str(text) => {
                for part in text.as_str().split('.') {
                    let key = match part.parse::<u32>() {
                        Ok(i) if part.bytes().all(|b| b.is_ascii_digit()) => Value::Int(i.into()),
                        _ => self.budget.str(part)?,
                    };
                    value = self.item(&value, &key)?;
                    if value.is_undefined()
                        && let Some(default) = default
                    {
                        value = default.clone();
                    }
                }
            }
            other => {
                value = self.item(&value, other)?;
                if value.is_undefined()
                    && let Some(default) = default
                {
                    value = default.clone();
                }
            }
        }
        Ok(value)
    }

    /// The sort key of an item. Several paths separated by commas give a list.
    fn sort_key(&self, item: &Value, attribute: Option<&Value>, case_sensitive: bool) -> Res<Value> {
        let fold = |value: Value| -> Res<Value> {
            match &value {
                Value::Str(text) if !case_sensitive => {
                    self.budget.room(text.as_str().len() * 2)?;
                    self.budget.string(text.as_str().to_lowercase())
                }
                _ => Ok(value),
            }
        };
        match attribute {
            None | Some(Value::None) => fold(item.clone()),
            Some(Value::Str(paths)) if paths.as_str().contains(',') => {
                let mut keys = Items::new(self.budget);
                for path in paths.as_str().split(',') {
                    keys.push(fold(self.path(item, &self.budget.str(path)?, None)?)?)?;
                }
                self.budget.list(keys)
            }
            Some(path) => fold(self.path(item, path, None)?),
        }
    }

    fn keyed(
        &self,
        value: &Value,
        attribute: Option<&Value>,
        case_sensitive: bool,
    ) -> Res<Vec<(Value, Value)>> {
        let items = vec_of(self.budget, value)?;
        let keyed =
            items.into_iter().map(|item| Ok((self.sort_key(&item, attribute, case_sensitive)?, item)));
        keyed.collect()
    }

    fn sorted_list(&self, keyed: Vec<(Value, Value)>, reverse: Option<Value>) -> Res<Value> {
        let reverse = self.flag(reverse)?;
        let less = |a: &(Value, Value), b: &(Value, Value)| {
            if reverse { ops::less(self.budget, &b.0, &a.0) } else { ops::less(self.budget, &a.0, &b.0) }
        };
        let mut items = Items::new(self.budget);
        for (_, item) in ops::sorted(self.budget, keyed, less)? {
            items.push(item)?;
        }
        self.budget.list(items)
    }

    fn mapped(&self, value: Value, mut args: Args) -> Res<Value> {
        let mut items = Items::new(self.budget);
        let walk = |each: &dyn Fn(Value) -> Res<Value>, items: &mut Items<'_, Value>| -> Res<()> {
            let mut from = Iter::over(&value)?;
            while let Some(item) = from.next(self.budget)? {
                items.push(each(item)?)?;
            }
            Ok(())
        };
        let end = if args.positional.is_empty() {
            let (attribute, default) = (args.take("attribute"), args.take("default"));
            if let Some((name, _)) = args.named.first() {
                return Fault::failed(format!("Unexpected keyword argument '{name}'"));
            }
            let Some(attribute) = attribute else {
                return Fault::failed("map requires a filter argument");
            };
            walk(&|item| self.path(&item, &attribute, default.as_ref()), &mut items)
        } else {
            let name = self.text_of(&args.positional.remove(0))?;
            let Args { positional, named } = args;
            walk(
                &|item| {
                    let args = Args { positional: positional.clone(), named: named.clone() };
                    self.nested(|| self.filter(name.as_str(), item, args))
                },
                &mut items,
            )
        };
        self.budget.stream(items, end)
    }

    fn selected(&self, name: &str, value: Value, mut args: Args) -> Res<Value> {
        let wanted = name.starts_with("select");
        let attribute = if name.ends_with("attr") {
            if args.positional.is_empty() {
                return Fault::failed("Missing parameter for attribute name");
            }
            Some(args.positional.remove(0))
        } else {
            None
        };
        let test =
            if args.positional.is_empty() { None } else { Some(self.text_of(&args.positional.remove(0))?) };
        let mut items = Items::new(self.budget);
        let mut walk = || -> Res<()> {
            let mut from = Iter::over(&value)?;
            while let Some(item) = from.next(self.budget)? {
                let subject = match &attribute {
                    Some(path) => self.path(&item, path, None)?,
                    None => item.clone(),
                };
                let holds = match &test {
                    Some(test) => {
                        let args = Args { positional: args.positional.clone(), named: args.named.clone() };
                        self.check(test.as_str(), &subject, args)?
                    }
                    None => ops::truth(self.budget, &subject)?,
                };
                if holds == wanted {
                    items.push(item)?;
                }
            }
            Ok(())
        };
        let end = walk();
        self.budget.stream(items, end)
    }

    fn grouped(
        &self,
        value: &Value,
        attribute: &Value,
        default: Option<&Value>,
        case_sensitive: Option<Value>,
    ) -> Res<Value> {
        let case_sensitive = self.flag(case_sensitive)?;
        let mut keyed = Vec::new();
        for item in vec_of(self.budget, value)? {
            let raw = self.path(&item, attribute, default)?;
            keyed.push((self.sort_key(&raw, None, case_sensitive)?, raw, item));
        }
        let keyed = ops::sorted(self.budget, keyed, |a, b| ops::less(self.budget, &a.0, &b.0))?;
        let mut groups = Items::new(self.budget);
        let mut open: Option<(Value, Value, Items<'_, Value>)> = None;
        for (key, raw, item) in keyed {
            let same = match &open {
                Some((open_key, ..)) => ops::equal(self.budget, open_key, &key)?,
                None => false,
            };
            if !same {
                if let Some((_, raw, items)) = open.take() {
                    groups.push(self.budget.group(raw, self.budget.list(items)?)?)?;
                }
                open = Some((key, raw, Items::new(self.budget)));
            }
            if let Some((_, _, items)) = &mut open {
                items.push(item)?;
            }
        }
        if let Some((_, raw, items)) = open {
            groups.push(self.budget.group(raw, self.budget.list(items)?)?)?;
        }
        self.budget.list(groups)
    }

    /// Lists of `n` items each. The last one is filled up.
    fn batched(&self, value: &Value, n: usize, fill: Option<Value>) -> Res<Value> {
        let fill = fill.filter(|fill| !matches!(fill, Value::None));
        let mut batches = Items::new(self.budget);
        let mut batch = Items::new(self.budget);
        let mut items = Iter::over(value)?;
        let mut is_open = false;
        while let Some(item) = items.next(self.budget)? {
            if batch.len() == n {
                batches.push(self.budget.list(std::mem::replace(&mut batch, Items::new(self.budget)))?)?;
            }
            is_open = true;
            batch.push(item)?;
        }
        if is_open {
            if let Some(fill) = fill {
                while batch.len() < n {
                    batch.push(fill.clone())?;
                }
            }
            batches.push(self.budget.list(batch)?)?;
        }
        self.budget.stream(batches, Ok(()))
    }

    /// `n` lists of sizes as even as possible. The shorter ones are filled up.
    fn in_slices(&self, value: &Value, n: usize, fill: Option<Value>) -> Res<Value> {
        let items = vec_of(self.budget, value)?;
        if n == 0 {
            return Fault::failed("integer division or modulo by zero");
        }
        let fill = fill.filter(|fill| !matches!(fill, Value::None));
        let (per_slice, n_longer) = (items.len() / n, items.len() % n);
        let mut slices = Items::new(self.budget);
        let mut items = items.into_iter();
        for i in 0..n {
            let is_longer = i < n_longer;
            let mut slice = Items::new(self.budget);
            for item in items.by_ref().take(per_slice + usize::from(is_longer)) {
                slice.push(item)?;
            }
            if let (Some(fill), false) = (&fill, is_longer) {
                slice.push(fill.clone())?;
            }
            slices.push(self.budget.list(slice)?)?;
        }
        self.budget.stream(slices, Ok(()))
    }
}

/// The words of a text.
pub(super) fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_space).filter(|word| !word.is_empty())
}
