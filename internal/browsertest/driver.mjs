// Drives Chromium for the Go tests beside it. Each line on stdin is a command,
// {"page": "name", "op": "…", …}; each line on stdout is the answer to one, in
// order: {"value": …} or {"error": "…"}. The end of stdin closes the browser.
//
// It knows the elements of examples/chat/page.html and decides nothing: what is
// right is said by the Go tests.
import {createInterface} from 'node:readline';
import {chromium} from 'playwright-core';

const browser = await chromium.launch({
	executablePath: process.env.CHROMIUM,
	args: [
		'--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
		'--disable-background-networking', '--disable-component-update', '--disable-sync',
	],
});

const pages = {};    // by name, each in a context of its own: as if in another browser
const troubles = []; // what any page complained of

const ops = {
	async open({page, url, width, height, dark}) {
		const context = await browser.newContext({
			viewport: {width: width || 1000, height: height || 700},
			colorScheme: dark ? 'dark' : 'light',
			isMobile: Boolean(width && width < 600),
			hasTouch: Boolean(width && width < 600),
		});
		const p = pages[page] = await context.newPage();
		p.setDefaultTimeout(15_000);
		p.on('pageerror', e => troubles.push(`${page}: ${e}`));
		p.on('dialog', d => { troubles.push(`${page}: dialog ${d.message()}`); d.dismiss(); });
		p.on('console', m => { if (m.type() === 'error') troubles.push(`${page}: ${m.text()}`); });
		p.on('request', r => { if (!r.url().startsWith(url) && !r.url().startsWith('data:')) troubles.push(`${page} asks for ${r.url()}`); });
		await p.goto(url);
	},
	async join({page, name}) {
		await pages[page].fill('#name', name);
		await pages[page].press('#name', 'Enter');
		await pages[page].waitForSelector('#state.on');
	},
	async say({page, text}) {
		await pages[page].fill('#text', text);
		await pages[page].press('#text', 'Enter');
	},
	// What a person reads, top to bottom, as the terminal has it.
	lines: ({page}) => pages[page].$$eval('#lines > p', all => all.map(p =>
		p.classList.contains('note') ? '* ' + p.textContent
			: (p.classList.contains('pending') ? 'pending ' : '') + p.querySelector('.who').textContent + p.querySelector('.text').textContent)),
	text: ({page, selector}) => pages[page].textContent(selector),
	wait: ({page, selector}) => pages[page].waitForSelector(selector).then(() => null),
	visible: ({page, selector}) => pages[page].isVisible(selector),
	click: ({page, selector}) => pages[page].click(selector),
	// A turn of the wheel, up.
	wheel: ({page}) => pages[page].$eval('#log', log => new Promise(done => {
		log.addEventListener('scroll', () => done(null), {once: true});
		log.scrollBy(0, -300);
	})),
	// How far the page is wider than its window.
	overflow: ({page}) => pages[page].evaluate(() => document.documentElement.scrollWidth - innerWidth),
	screenshot: ({page, path}) => pages[page].screenshot({path}).then(() => null),
	async close({page}) {
		await pages[page].context().close();
		delete pages[page];
	},
	troubles: () => troubles.splice(0),
};

for await (const command of createInterface({input: process.stdin})) {
	let answer;
	try {
		const c = JSON.parse(command);
		answer = {value: await ops[c.op](c) ?? null};
	} catch (e) {
		answer = {error: String(e)};
	}
	console.log(JSON.stringify(answer));
}
await browser.close();
