// What a peer in JavaScript does: it follows steps on a WebSocket and reports
// what it saw. Browsers, undici and ws all run this file, for all three have the
// standard's WebSocket. It decides nothing: what is right is said in Go.

const utf8 = new TextEncoder();

const crcs = new Uint32Array(256).map((_, n) => {
	for (let i = 0; i < 8; i++) n = n & 1 ? 0xedb88320 ^ n >>> 1 : n >>> 1;
	return n;
});

function crc32(bytes) {
	let c = -1;
	for (const b of bytes) c = crcs[(c ^ b) & 255] ^ c >>> 8;
	return ~c >>> 0;
}

// Messages may be large, so they come as a recipe.
function cook({text, unit, times, tail}) {
	if (text) return unit.repeat(times) + tail;
	const [u, t] = [unit, tail].map(hex => Uint8Array.from(hex.match(/../g) ?? [], s => parseInt(s, 16)));
	const bytes = new Uint8Array(u.length * times + t.length);
	for (let i = 0; i < times; i++) bytes.set(u, i * u.length);
	bytes.set(t, u.length * times);
	return bytes;
}

function describe(data) {
	const text = typeof data === 'string';
	const bytes = text ? utf8.encode(data) : new Uint8Array(data);
	return {text, bytes: bytes.length, crc: crc32(bytes)};
}

export async function follow(ws, steps) {
	const report = {opened: ws.readyState === 1, order: [], messages: [], pongs: [], close: null};
	ws.binaryType = 'arraybuffer';
	let wake = () => {};
	const on = (name, f) => ws.addEventListener(name, e => {
		if (report.order.at(-1) !== name) report.order.push(name);
		f(e);
		wake();
	});
	on('open', () => report.opened = true);
	on('message', e => report.messages.push(describe(e.data)));
	on('error', () => {});
	on('close', e => report.close = {code: e.code, reason: e.reason, clean: e.wasClean});
	// Only ws shows pongs.
	ws.on?.('pong', data => { report.pongs.push(String(data)); wake(); });

	const late = setTimeout(() => { report.late = true; wake(); }, 20_000);
	const until = async met => {
		while (!met() && !report.close && !report.late) await new Promise(resolve => wake = resolve);
	};
	const ops = {
		send: ({message}) => ws.send(cook(message)),
		receive: ({count}) => until(() => report.messages.length >= count),
		close: ({code, reason}) => code ? ws.close(code, reason) : ws.close(),
		// Only ws can do these two.
		async ping({payload}) {
			const before = report.pongs.length;
			ws.ping(payload);
			await until(() => report.pongs.length > before);
		},
		fragments({message, size}) {
			const all = cook(message);
			const bytes = message.text ? Buffer.from(all) : all;
			for (let at = 0; at === 0 || at < bytes.length; at += size) {
				ws.send(bytes.subarray(at, at + size), {binary: !message.text, fin: at + size >= bytes.length});
			}
		},
	};
	await until(() => report.opened || report.order.includes('error'));
	// undici 6 has no close event then.
	if (!report.opened) setTimeout(() => { report.late = true; wake(); }, 500);
	for (const step of steps) {
		if (!report.opened || report.close || report.late) break;
		await ops[step.op](step);
	}
	await until(() => false);
	clearTimeout(late);
	return {...report, protocol: ws.protocol, extensions: ws.extensions};
}
