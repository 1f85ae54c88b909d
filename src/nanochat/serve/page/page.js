// What the page does in the browser itself, as window.nanochat: functions that Gradio's events call, and the row under each answer.
(() => {
    const PHONE = 768, WIDE = 1000; // CSS pixels: where Gradio's sidebar covers the page; where both fit side by side (guess)

    const idInAddress = (opened) => {
        const url = new URL(window.location);
        if (opened && opened.id) url.searchParams.set("conversation", opened.id); else url.searchParams.delete("conversation");
        window.history.replaceState(window.history.state, "", url);
    };
    const onArrival = (owner) => {
        const id = new URL(window.location).searchParams.get("conversation") || "";
        return [owner, { id, wide: window.innerWidth > WIDE }];
    };
    const saveFile = (text) => {
        if (!text) return;
        const link = document.createElement("a");
        link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
        link.download = "conversations.json";
        link.click();
        setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    };
    // not on a phone, where it would open the keyboard
    const toTheBox = () => {
        if (window.innerWidth > WIDE) setTimeout(() => document.querySelector("#box textarea")?.focus(), 50);
    };
    const awayOnAPhone = () => {
        if (window.innerWidth <= PHONE) document.querySelector("#sidebar.open .toggle-button")?.click();
    };
    window.matchMedia(`(max-width: ${PHONE}px)`).addEventListener("change", awayOnAPhone); // a window that was made narrow, a turned tablet

    // A file is read here and never sent as one: {name, bytes, text}, text null where it is too long or not UTF-8; null for none.
    const pickFile = (mostBytes) => new Promise((resolve) => {
        const input = document.createElement("input");
        input.type = "file";
        input.oncancel = () => resolve(null);
        input.onchange = async () => {
            const file = input.files[0];
            let text = null;
            try {
                if (file.size <= mostBytes) text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
            } catch { /* not UTF-8, or gone since */ }
            resolve({ name: file.name, bytes: file.size, text });
        };
        input.click();
    });

    // The row under each answer, ⟳ ‹ 1/3 ›. `answers`: for each of them [number of its question, its branch, branches].
    let answers = [], asked = null;
    const press = (question, branch) => {
        asked = { question, branch };
        document.querySelector("#turn_to").click();
        if (branch === null) toTheEnd();
    };
    const button = (label, sign, action) => {
        const made = document.createElement("button");
        Object.assign(made, { textContent: sign, title: label, ariaLabel: label, disabled: !action, onclick: action });
        return made;
    };
    const draw = () => {
        document.querySelectorAll("#chat .bot-row").forEach((row, n) => {
            const buttons = row.nextElementSibling, beside = buttons?.matches(".message-buttons") ? buttons : row;
            const state = JSON.stringify(answers[n] ?? null);
            const [old, ...more] = [row, buttons].flatMap((e) => [...(e?.querySelectorAll(":scope > .branches") ?? [])]);
            if (more.length === 0 && (old ? old.parentElement === beside && old.dataset.state === state : !answers[n])) return;
            [old, ...more].forEach((e) => e?.remove());
            if (!answers[n]) return;
            const [question, at, of] = answers[n], line = document.createElement("div");
            line.className = "branches";
            line.dataset.state = state;
            line.append(button("Retry", "⟳", () => press(question, null)));
            if (of > 1) line.append(
                button("Earlier answer", "‹", at > 0 ? () => press(question, at - 1) : null),
                `${at + 1}/${of}`,
                button("Later answer", "›", at + 1 < of ? () => press(question, at + 1) : null),
            );
            beside.append(line);
        });
    };
    const drawAnswers = (value) => { answers = value ?? []; draw(); };
    // The view stays at the newest text while an answer grows, and while a keyboard, the sidebar or a turned phone changes the room
    // for it, until it is scrolled up. Gradio's autoscroll is off: it decides, waits 0.3 s and then scrolls, so that during an
    // answer it undid every scrolling up.
    const left = new WeakSet(), near = 100; // areas that were scrolled up; CSS pixels
    const last = new WeakMap();
    document.addEventListener("scroll", ({ target: e }) => {
        if (!e.matches?.(".bubble-wrap")) return;
        const below = e.scrollHeight - e.scrollTop - e.clientHeight, up = e.scrollTop < (last.get(e) ?? 0);
        if (below > 1 && up) left.add(e); // without `up` the text has grown, or was wrapped anew
        else if (below <= near) left.delete(e);
        last.set(e, e.scrollTop);
    }, true);
    const toTheEnd = () => document.querySelectorAll(".bubble-wrap").forEach((e) => { left.delete(e); e.scrollTo(0, e.scrollHeight); });
    const room = new ResizeObserver((changes) => changes.forEach(({ target: e }) => {
        const area = e.closest(".bubble-wrap");
        if (area && !left.has(area)) area.scrollTo(0, area.scrollHeight);
    }));
    new MutationObserver((changes) => {
        document.querySelectorAll(".bubble-wrap, .bubble-wrap > .message-wrap").forEach((e) => room.observe(e));
        if (changes.some(({ target }) => target.closest?.("#chat") || target.querySelector?.("#chat"))) draw();
    }).observe(document.documentElement, { childList: true, subtree: true });

    window.nanochat = { idInAddress, onArrival, saveFile, toTheBox, awayOnAPhone, pickFile, drawAnswers, toTheEnd, asked: () => asked };
})();
