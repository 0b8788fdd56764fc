"""The chat renderer: the talk's ids, the mask, append-only, and no way in for a user's special tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freedive.runs import UserError
from freedive.tokenizer import (
    DEFAULT_SPECIALS,
    ChatConfig,
    Tokenizer,
    byte_tokenizer,
    char_tokenizer,
    check_mask,
    parse,
    render,
    render_text,
)

CONTENT = st.lists(
    st.one_of(st.sampled_from(DEFAULT_SPECIALS), st.text(st.characters(blacklist_categories=["Cs"]), max_size=30)),
    min_size=1,
    max_size=4,
).map("".join)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(ChatConfig.roles), "content": CONTENT.filter(bool)}), min_size=1, max_size=6
)
HELLO = [{"role": "system", "content": "You are a helpful assistant"}, {"role": "user", "content": "Hello!!"}]
TALK = [
    200264,
    17360,
    200266,
    3575,
    553,
    261,
    10297,
    29186,
    200265,
    200264,
    1428,
    200266,
    13225,
    2618,
    200265,
    200264,
    173781,
    200266,
]


@pytest.fixture(scope="module", params=["bpe", "bytes", "no bos"])
def any_tok(request, tok):
    if request.param == "no bos":
        return Tokenizer("bpe", tok.tokens, tok.special_tokens, tok.pattern, ChatConfig(bos=False))
    return tok if request.param == "bpe" else byte_tokenizer()


def test_the_talks_example(published):
    """The talk's 18 ids are those of two exclamation marks, though its text shows three: one id differs."""
    tok = published("o200k_chatml")
    assert render(tok, HELLO, add_generation_prompt=True)[0] == TALK
    three = [HELLO[0], {"role": "user", "content": "Hello!!!"}]
    assert render(tok, three, add_generation_prompt=True)[0] == [*TALK[:13], 10880, *TALK[14:]]
    assert parse(tok, TALK) == HELLO


def test_the_talks_example_in_cl100k(published):
    three = [HELLO[0], {"role": "user", "content": "Hello!!!"}]
    system = [100264, 9125, 100266, 2675, 527, 264, 11190, 18328, 100265]
    rest = [100264, 882, 100266, 9906, 12340, 100265, 100264, 78191, 100266]
    assert render(published("cl100k_chatml"), three, add_generation_prompt=True)[0] == system + rest


def test_form_and_mask_token_by_token(tok):
    ids, mask = render(
        tok, [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}], add_generation_prompt=True
    )
    start, sep, end = tok.im_start, tok.im_sep, tok.im_end
    user, assistant, hi, yo = (tok.encode(text) for text in ("user", "assistant", "hi", "yo"))
    pieces = [
        ([tok.bos_id, start, *user, sep, *hi, end, start, *assistant, sep], 0),
        ([*yo, end], 1),
        ([start, *assistant, sep], 0),
    ]
    assert ids == [i for piece, _ in pieces for i in piece]
    assert mask == [trained for piece, trained in pieces for _ in piece]


@given(messages=MESSAGES, generate=st.booleans())
def test_parse_is_the_inverse(any_tok, messages, generate):
    ids, mask = render(any_tok, messages, generate)
    assert len(ids) == len(mask)
    assert parse(any_tok, ids) == messages


@given(messages=MESSAGES)
def test_no_content_gives_a_special_token(any_tok, messages):
    ids, _ = render(any_tok, messages)
    chat = any_tok.chat
    count = {name: ids.count(any_tok.special(name)) for name in any_tok.special_tokens}
    expected = dict.fromkeys((chat.start, chat.sep, chat.end), len(messages)) | {"<|endoftext|>": int(chat.bos)}
    assert count == {name: expected.get(name, 0) for name in count}


@given(messages=MESSAGES, data=st.data())
def test_append_only(any_tok, messages, data):
    ids, mask = render(any_tok, messages)
    k = data.draw(st.integers(1, len(messages)))
    generate = k < len(messages) and messages[k]["role"] == "assistant"
    first, first_mask = render(any_tok, messages[:k], add_generation_prompt=generate)
    assert ids[: len(first)] == first and mask[: len(first)] == first_mask


@given(messages=MESSAGES)
def test_what_is_trained_is_what_assistants_say(any_tok, messages):
    ids, mask = render(any_tok, messages)
    said = [m["content"] + "<|im_end|>" for m in messages if m["role"] == "assistant"]
    assert any_tok.decode([i for i, trained in zip(ids, mask, strict=True) if trained]) == "".join(said)
    if said:
        check_mask(any_tok, ids, mask)
    else:
        with pytest.raises(UserError, match="no token is trained"):
            check_mask(any_tok, ids, mask)


def test_check_mask_finds_the_common_bugs(tok):
    ids, mask = render(tok, [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}])
    never_stops = mask[:-1] + [0]
    with pytest.raises(UserError, match="row 7: .*never learn to stop"):
        check_mask(tok, ids, never_stops, row=7)
    with pytest.raises(UserError, match="only the assistant"):
        check_mask(tok, ids, [1] * len(ids))
    with pytest.raises(UserError, match="mask entries"):
        check_mask(tok, ids, mask[1:])
    shifted = [*mask[1:], 0]
    with pytest.raises(UserError):
        check_mask(tok, ids, shifted)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "no messages"),
        ("hello", "list of messages, got str"),
        (None, "NoneType"),
        ({"role": "user", "content": "x"}, "got dict"),
        (["hello"], "message 1 is str"),
        ([{"role": "user"}], "has the keys"),
        ([{"role": "user", "content": "x"}, {"role": "robot", "content": "x"}], "message 2 has the role 'robot'"),
        ([{"role": ["user"], "content": "x"}], "has the role"),
        ([{"role": "user", "content": ""}], "is empty"),
        ([{"role": "user", "content": None}], "content must be text, is NoneType"),
        ([{"role": "assistant", "content": "x", "tool_calls": [{}]}], "tool_calls"),
    ],
)
def test_wrong_messages_are_named_with_their_row(tok, messages, message):
    with pytest.raises(UserError, match=f"^row 12: .*{message}"):
        render(tok, messages, row=12)


def test_training_needs_an_assistant(tok):
    render(tok, HELLO)
    with pytest.raises(UserError, match="chats.jsonl line 3: .*nothing to learn"):
        render(tok, HELLO, training=True, row="chats.jsonl line 3")


def test_parse_says_where_it_stopped(tok):
    good, _ = render(tok, HELLO)
    for wrong in (
        [],
        good[1:],
        good[:1] + good[2:],
        [*good, 65],
        [*good, tok.im_start, 65, tok.im_sep],
        [*good[:-1], tok.im_start],
    ):
        with pytest.raises(UserError, match="position"):
            parse(tok, wrong)
    with pytest.raises(UserError, match="no <|im_end|>"):
        parse(tok, good[:-1])
    assert parse(tok, good[:-1], allow_unfinished=True) == HELLO


def test_text_for_people_and_other_token_names():
    specials = ("<s>", "<m>", "<e>")
    tok = byte_tokenizer(specials)
    assert tok.chat is None
    with pytest.raises(UserError, match="no chat form"):
        render(tok, HELLO)
    chat = ChatConfig("<s>", "<m>", "<e>", bos=False)
    tok = Tokenizer("bytes", tok.tokens, tok.special_tokens, None, chat)
    expected = "<s>system<m>You are a helpful assistant<e><s>user<m>Hello!!<e><s>assistant<m>"
    assert render_text(tok, HELLO, add_generation_prompt=True) == expected
    assert tok.im_start == 256


def test_characters_can_chat_if_they_know_the_letters():
    tok = char_tokenizer("systemuserassistant You are a helpful assistant Hello!!")
    assert parse(tok, render(tok, HELLO)[0]) == HELLO
