"""For schemathesis, what a schema cannot say of a chat: its last message is a user's, its model and adapter exist."""

import schemathesis


@schemathesis.hook
def before_call(context, case, kwargs):
    if case.meta.generation.mode.is_positive and isinstance(case.body, dict):
        turns = [*case.body["messages"][:199], {"role": "user", "content": "What is a fever?"}]
        case.body = case.body | {"messages": turns, "model": None, "adapter": None}
